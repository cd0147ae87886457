"""What the models write, on page, terminal and card: the numbers of the record, and its texts as text."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
from html_pages import Page, assert_loads_nothing
from rich.console import Console
from run_records import HOSTILE_NAMES, write_record, written

from manticore.errors import ManticoreError
from manticore.report import render_comparison, write_model_card, write_report
from manticore.report.figures import draw_figures
from manticore.report.results import parse_results, read_results
from manticore.report.verdict import verdict


def page(folder, record) -> Page:
    return Page(write_report(write_record(folder, record)).read_text(encoding="utf-8"))


def printed(record, width=120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_comparison(record))
    return console.file.getvalue()


def test_what_is_read_back_is_what_was_there(record, tmp_path):
    written(record, 128, 4096)
    found = read_results(write_record(tmp_path, record)).compare.writing
    assert [(row.model, row.budget, row.seed) for row in found] == [
        (row["model"], row["budget"], row["seed"]) for row in record["compare"]["writing"]
    ]
    first, there = found[1].generated, record["compare"]["writing"][1]["generated"]
    assert (first.exact_match, first.examples) == (there["exact_match"], 64)
    assert [(each.length, each.share, each.examples) for each in first.recall] == [(128, 0.75, 8), (4096, 0.375, 8)]
    assert vars(first.speed[1]) == there["speed"][1]
    assert first.samples[0].prompt == "def sum(a,↵"
    assert first.samples[0].written == " mamba writes↵↵0"


def test_the_page_has_table_curve_and_samples(record, tmp_path):
    plain = page(tmp_path / "plain", copy.deepcopy(record))
    assert "What they write" not in plain.words()
    shown = page(tmp_path / "run", written(record, 128, 4096))
    words = shown.words()
    for title in ("What they write", "Recall and speed by length", "How fast they write", "Samples"):
        assert title in words
    assert "recall at 128 tokens recall at 4,096 tokens" in words
    assert "0.250 16 of 64 0.250 0.125" in words
    assert "0.750 48 of 64 0.750 0.375" in words
    assert "319 first 2.6 ms 128 KiB 257 first 82 ms 4 MiB" in words
    assert "after def sum(a,↵ expected b) mamba, as downloaded mamba writes↵↵None" in words
    assert "hybrid, fine-tuning alone hybrid writes↵↵0" in words
    assert (tmp_path / "run" / "figures" / "writing.svg").is_file()
    drawing = draw_figures(parse_results(record))["writing"].svg
    for word in ("recall", "tokens per second", "ms to the first token", "hybrid", "4,096"):
        assert f">{word}<" in drawing
    # one length is no curve
    assert "writing" not in draw_figures(parse_results(written(record, 128)))


def test_terminal_and_card_have_the_short_form(record, tmp_path):
    before = verdict(parse_results(record))
    said = " ".join(printed(written(record, 128, 512, 4096), width=160).replace("│", " ").split())
    assert "what they write" in said
    assert "hybrid 48 of 64 0.750 0.250 319 257 fine-tuning alone" in said
    assert "recall at 512" not in said
    narrow = printed(record, width=80)
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    (tmp_path / "model").mkdir()
    card = write_model_card(tmp_path / "model", record).read_text(encoding="utf-8")
    rows = [line for line in card.splitlines() if line.startswith("| hybrid, fine-tuning alone |")]
    assert len(rows) == 1
    assert rows[0].startswith("| hybrid, fine-tuning alone | 48 of 64 | 0.750 | 0.250 | 319 | 257 |")
    titles = card.splitlines().index("## What the models write") + 4
    assert card.splitlines()[titles].startswith("| model | exact match | recall at 128 | recall at 4,096 |")
    assert card.splitlines()[titles].count("|") == card.splitlines()[titles + 1].count("|") == rows[0].count("|")
    # counted by nothing else
    assert verdict(parse_results(record)) == before


def test_what_could_not_write_says_why(record, tmp_path):
    written(record, 128)
    record["compare"]["untrained"] = [{"model": "gpt", "metrics": {}, "left_out": "gpt gets a fresh head"}]
    rows = record["compare"]["writing"]
    rows[-1] |= {"generated": {}, "left_out": "hybrid: <b>cannot</b> write"}
    rows[2] |= {"generated": {}, "left_out": "gpt gets a fresh head"}
    shown = page(tmp_path, record)
    note = "hybrid (fine-tuning alone) has written nothing: hybrid: <b>cannot</b> write"
    assert note in shown.words()
    assert note in " ".join(printed(record).split())
    # said once, beside the scores
    assert shown.words().count("gpt gets a fresh head") == 1
    for row in rows:
        row |= {"generated": {}, "left_out": "nothing at all"}
    assert "What they write" not in page(tmp_path / "none", record).words()


@pytest.mark.parametrize("text", HOSTILE_NAMES)
def test_samples_are_shown_and_never_read(record, tmp_path, text):
    written(record, 128, 512)
    for row in record["compare"]["writing"]:
        row["generated"]["samples"] = [{"prompt": text, "expected": text, "written": text}] * 3
        row["left_out"] = ""
    html = write_report(write_record(tmp_path, record)).read_text(encoding="utf-8")
    assert_loads_nothing(html)
    if len(text) < 100:
        shown = parse_results(record).compare.writing[0].generated.samples[0].written
        assert " ".join(shown.split()) in Page(html).words()
    assert len(html) < 400_000
    printed(record)


def damaged(path: list[Any], value: Any) -> Any:
    def change(row: dict[str, Any]) -> None:
        place: Any = row
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (["budget"], 7, "compare.writing.budget: wrong value (got 7, expected an index below 2)"),
        (["generated", "exact_match"], 1.5, "compare.writing.generated.exact_match: wrong value (got 1.5, expected a"),
        (["generated", "recall", 0, "share"], -1, "compare.writing.generated.recall.share: wrong value (got -1.0"),
        (["generated", "recall", 0, "length"], 0, "compare.writing.generated.recall.length: wrong value (got [0, 512]"),
        (["generated", "speed", 0, "context"], 2**40, "compare.writing.generated.speed.context: wrong value"),
        (["generated", "speed", 0, "cache_bytes"], -4, "compare.writing.generated.speed.cache_bytes: wrong value"),
        (
            ["generated", "samples", 0, "written"],
            3,
            "compare.writing[0].generated.samples[0].written: wrong value (got 3",
        ),
        (
            ["generated", "samples"],
            "text",
            "compare.writing[0].generated.samples: wrong value (got 'text', expected a l",
        ),
        (["generated"], [], "compare.writing[0].generated: wrong value (got [], expected an object)"),
    ],
)
def test_a_damaged_value_ends_in_one_line(record, tmp_path, path, value, line):
    written(record, 128, 512)
    damaged(path, value)(record["compare"]["writing"][0])
    with pytest.raises(ManticoreError) as caught:
        write_report(write_record(tmp_path, record))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "results.json").read_text())["compare"]["writing"]
