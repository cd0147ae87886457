"""Page, terminal and card say the same of a score: before training, in bits per byte, at which share of a budget."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_records import write_record

from manticore.report import render_comparison, write_model_card, write_report
from manticore.report.results import parse_results


def texts(record: dict[str, Any], folder: Path) -> dict[str, str]:
    """What a reader sees of a record in each place, white space made plain."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    page = write_report(write_record(folder, record)).read_text(encoding="utf-8")
    card = write_model_card(folder / "model", record).read_text(encoding="utf-8")
    console = Console(file=io.StringIO(), width=120)
    console.print(render_comparison(parse_results(record)))
    said = {"page": page, "card": card, "terminal": console.file.getvalue()}  # type: ignore[attr-defined]
    return {name: " ".join(text.split()) for name, text in said.items()}


@pytest.fixture
def on_text(record: dict[str, Any]) -> dict[str, Any]:
    """A comparison on text, of 8 of 122 examples, with an ensemble that a whole step keeps at 80 % of its budget."""
    record["task"] |= {
        "name": "text",
        "primary_metric": "loss",
        "higher_is_better": False,
        "examples": {"train": 1000, "test": 122},
        "scored": 8,
        "bos": "<s>",
    }
    record["align"]["bos"] = "<s>"
    compare = record["compare"]
    for row in compare["rows"]:
        for seed in row["seeds"]:
            seed["metrics"]["bits_per_byte"] = 1.25
    for seed in compare["rows"][2]["seeds"]:
        seed["flops"] = 0.8 * compare["budgets"][0]["flops"]
    compare["rows"][2]["step_flops"] = 0.25 * compare["budgets"][0]["flops"]
    compare["untrained"] = [
        {"model": "mamba", "metrics": {"loss": 4.3211, "bits_per_byte": 1.987}, "left_out": ""},
        {"model": "gpt", "metrics": {}, "left_out": "<b>gpt</b> has no head"},
    ]
    compare["notes"] = ["Read *this* first."]
    return record


def test_every_place_says_it(on_text: dict[str, Any], tmp_path: Path) -> None:
    for place, said in texts(on_text, tmp_path).items():
        assert "as downloaded" in said, place
        assert "4.321" in said, place
        assert "1.987 bits per byte" in said, place
        assert "1.250 bits per byte" in said, place
        assert "80% of the budget (whole steps)" in said, place
        assert "off budget" not in said, place
        assert "same number of FLOPs" not in said, place
        assert "8 of the 122 test examples" in said, place
        assert "has no head" in said, place
        assert "<b>gpt" not in said or place == "terminal", place
        if place != "terminal":
            assert "every pack begins with" in said, place
            assert "80% to 99% of the budget in training FLOPs" in said, place


def test_every_place_gives_a_mixture_source_by_source(on_text: dict[str, Any], tmp_path: Path) -> None:
    sources = {"code": {"text": "/home/me/code.txt", "share": 0.25}, "english": {"text": "docstrings", "share": 0.75}}
    on_text["task"]["options"] = {"sources": json.dumps(sources), "length": "128"}
    of_sources = {"loss:code": 2.125, "bits_per_byte:code": 1.0625, "loss:english": 3.5, "bits_per_byte:english": 1.75}
    for row in on_text["compare"]["rows"]:
        for seed in row["seeds"]:
            seed["metrics"] |= of_sources
    on_text["compare"]["untrained"][0]["metrics"] |= {**of_sources, "loss:code": 4.875}
    for place, said in texts(on_text, tmp_path).items():
        for line in ("code 2.125, 1.062 bits", "english 3.500, 1.750 bits", "code 4.875, 1.062 bits"):
            assert line in said, (place, line)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "25% of the tokens from code (code.txt), 75% of the tokens from english (docstrings)" in card
    assert "/home/me" not in card


def test_an_older_record_says_none_of_it(record: dict[str, Any], tmp_path: Path) -> None:
    for place, said in texts(record, tmp_path).items():
        assert "as downloaded" not in said, place
        assert "bits per byte" not in said, place
        assert "test examples" not in said, place
        assert "None" not in said, place
        assert "BOS" not in said, place
    # a flag without figures is all that some records have
    record["compare"]["rows"][0]["mismatch"] = True
    for seed in record["compare"]["rows"][0]["seeds"]:
        del seed["flops"]
    assert all("off budget" in said for said in texts(record, tmp_path).values())
