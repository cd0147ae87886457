"""The comparison in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from run_records import HOSTILE_NAMES

from manticore.report import render_comparison, render_summary


def _printed(renderable, width=160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_comparison_shows_every_model_and_score(record):
    text = _printed(render_comparison(record))
    for row in record["compare"]["rows"]:
        assert row["model"] in text
        assert f"{row['mean']:.3f}" in text
        assert f"[{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]" in text
    assert "fine-tuning alone" in text
    assert "1.13 M" in text


def test_nothing_is_cut_on_a_narrow_terminal(record):
    text = _printed(render_comparison(record), width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    # every model's row is whole, once per table
    for words in ("fine-tuning alone", "everything the hybrid cost", "compute per token", "cache per token"):
        assert words in text
    for row in record["compare"]["rows"]:
        assert text.count(f"│ {row['model']} ") == 2


def test_a_rate_that_diverged_is_named(record):
    record["compare"]["rows"][1]["diverged"] = [0.1, 3.0]
    name = record["compare"]["rows"][1]["model"]
    text = " ".join(_printed(render_summary(record)).split())
    assert f"warning: {name}, budget 1: diverged with learning rate 0.1, 3, which counts as the worst." in text


def test_summary_has_verdict_blocks_and_warnings(record):
    record["status"] = "interrupted"
    text = " ".join(_printed(render_summary(record)).split())
    assert "mamba → gpt beats the best parent (mamba)" in text
    assert "blocks: mamba → gpt" in text
    assert "warning: The run is interrupted" in text


@pytest.mark.parametrize("name", [n for n in HOSTILE_NAMES if len(n) < 100])
def test_names_are_no_markup(record, name):
    for row in record["compare"]["rows"]:
        row["model"] = name
    text = _printed(render_comparison(record))
    assert "\x1b" not in text
    assert ("[bold red]rich[/]" in text) == (name == "[bold red]rich[/]")


def test_without_a_comparison_the_table_is_empty():
    assert _printed(render_comparison({"schema_version": 1})) == ""
    assert "cannot be said" in _printed(render_summary({"schema_version": 1}))
