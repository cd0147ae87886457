"""The comparison in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from run_records import HOSTILE_NAMES

from manticore.report import render_comparison, render_summary


def _printed(renderable) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
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


def test_summary_has_verdict_blocks_and_warnings(record):
    record["status"] = "interrupted"
    text = " ".join(_printed(render_summary(record)).split())
    assert "the hybrid beats its best parent, mamba" in text
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
    assert render_comparison({"schema_version": 1}).row_count == 0
    assert "cannot be said" in _printed(render_summary({"schema_version": 1}))
