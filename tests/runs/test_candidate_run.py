"""A run whose search trains candidates: the winner goes on, and what was spent is counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manticore.runs.folder import create_run
from manticore.schema.loading import load_recipe
from manticore.stages.pipeline import execute


def run(recipe: Path, out: Path, *overrides: str) -> dict[str, Any]:
    options = ["search={}", "finetune={steps: 24, batch_size: 8, lr: 0.01, save_steps: 24}", *overrides]
    return execute(create_run(load_recipe(str(recipe), options), str(out)))


def test_the_winner_goes_on_and_everything_is_counted_once(mini_recipe: Path, tmp_path: Path) -> None:
    short = ["finetune={steps: 12, batch_size: 8, lr: 0.003}", "compare.learning_rates=[0.003]"]
    results = run(mini_recipe, tmp_path / "run", *short)
    search, tuned, compare = results["search"], results["finetune"], results["compare"]
    unit = search["unit_flops"]
    assert search["method"] == "auto"
    assert search["order"] == ""
    assert [each["path"] for each in search["candidates"] if each["chosen"]] == [search["path"]]
    # one fine-tuning, of which the search has made a part, or all where nobody was ahead before its end
    assert 0 < search["trained_flops"] <= tuned["flops"] <= unit
    assert tuned["begun_flops"] == search["trained_flops"]
    assert (tmp_path / "run/model/config.json").is_file()
    # else nothing below means anything
    assert len(set(search["path"])) > 1
    assert {row["model"] for row in compare["rows"]} == {"gpt", "mamba", "hybrid", "ensemble (logits)"}
    everything = tuned["flops"] + results["align"]["flops"] + search["flops"] - search["trained_flops"]
    assert compare["budgets"][1]["flops"] == pytest.approx(everything, abs=1)
    hybrid = next(row for row in compare["rows"] if row["model"] == "hybrid" and row["budget"] == 0)
    # the seed of the run trains to the bits of fine-tuning
    assert hybrid["seeds"][0]["metrics"] == tuned["metrics"]


SHORT = ["finetune.steps=12", "compare={seeds: [0], learning_rates: [0.01], ensemble: false}"]


def test_a_parent_is_not_another_row_of_the_comparison(mini_recipe: Path, tmp_path: Path) -> None:
    results = run(mini_recipe, tmp_path / "run", "discretize.path=[1,1]", *SHORT)
    assert {row["model"] for row in results["compare"]["rows"]} == {"gpt", "mamba"}


def test_a_path_of_the_recipe_is_trained_from_the_beginning(mini_recipe: Path, tmp_path: Path) -> None:
    results = run(mini_recipe, tmp_path / "run", "discretize.path=[1,0]", *SHORT)
    assert results["discretize"]["path"] == [1, 0]
    hybrid = next(row for row in results["compare"]["rows"] if row["model"] == "hybrid" and row["budget"] == 0)
    assert hybrid["seeds"][0]["metrics"] == results["finetune"]["metrics"]


def test_a_cheaper_task_serves_the_search_alone(mini_recipe: Path, tmp_path: Path) -> None:
    cheaper = "search={task_options: {seq_len: 8, vocab_size: 8}, batch_size: 4}"
    results = run(mini_recipe, tmp_path / "run", cheaper, "compare=null")
    assert results["search"]["unit_flops"] < results["finetune"]["flops"] / 2
    assert results["task"]["length"] == 15
    assert results["search"]["task_options"] == {"seq_len": "8", "vocab_size": "8"}
    assert "on a cheaper task of the same kind (seq_len=8, vocab_size=8)" in (tmp_path / "run/report.html").read_text()
    assert results["finetune"]["begun_flops"] == 0
    # nothing of what the candidates learned is in the model, which has the vocabulary of the task
    assert results["discretize"]["path"] == results["search"]["path"]
    assert results["finetune"]["steps"] >= 24
