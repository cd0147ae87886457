"""A run on a task with classes: every stage, the model it leaves, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

import manticore
from manticore.file_names import MODEL
from manticore.report.loading_code import loading_code
from manticore.report.results import read_results
from manticore.runs.folder import create_run
from manticore.schema.loading import load_recipe
from manticore.stages.align import task_text
from manticore.stages.pipeline import execute
from manticore.stages.run import Run
from manticore.tasks.task import load_task

OPTIONS = {"min_length": 4, "max_length": 12, "num_train": 64, "num_validation": 16, "num_test": 16}
TASK = f"task={{name: listops-short, options: {json.dumps(OPTIONS)}}}"


def test_from_checkpoints_to_a_saved_classifier(mini_recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(str(mini_recipe), [TASK, "align.text=task", "align.tokens=256", "search.order=bilevel"])
    run = create_run(loaded, str(tmp_path / "run"))
    results = execute(run)
    assert results["task"]["name"] == "listops-short (4 to 12 symbols)"
    assert results["model"]["loads_with"] == "AutoModelForSequenceClassification"
    found = {"hybrid"} if len(set(results["discretize"]["path"])) > 1 else set()
    rows = {row["model"] for row in results["compare"]["rows"]}
    assert rows == {"gpt", "mamba", "supernet (soft)", "ensemble (logits)"} | found
    assert set(json.loads((run.path / "lineage.json").read_text())["data"]) == {"train", "validation", "test"}
    model = AutoModelForSequenceClassification.from_pretrained(run.path / MODEL)
    scored = manticore.evaluate(model, load_task("listops-short", **OPTIONS))
    assert scored == pytest.approx(results["finetune"]["metrics"], rel=1e-5)
    card = (run.path / MODEL / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "      type: text-classification" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in loading_code(read_results(run.path), run.path)


def test_without_a_search_a_given_path_is_tuned(mini_recipe: Path, tmp_path: Path) -> None:
    overrides = [TASK, "align=null", "search=null", "compare=null", "discretize.path=[1,0]"]
    results = execute(create_run(load_recipe(str(mini_recipe), overrides), str(tmp_path / "run")))
    assert results["discretize"]["path"] == [1, 0]
    assert results["finetune"]["metrics"]["accuracy"] >= 0
    # and a run on the same parents takes over what that one had
    overrides[-1] = f"discretize.weights_from={tmp_path / 'run'}"
    run = create_run(load_recipe(str(mini_recipe), [*overrides, "finetune.steps=1"]), str(tmp_path / "programmed"))
    assert execute(run)["discretize"]["path"] == [1, 0]
    # of which a run that is resumed says that it has changed
    assert f"found in {tmp_path / 'run'}" in Run(run).read()


def test_rows_to_align_on_are_filled_up_and_masked(mini_recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(str(mini_recipe), [TASK, "align.text=task", "align.tokens=120"])
    run = Run(create_run(loaded, str(tmp_path / "run")))
    run.sources = [str(tmp_path)] * 2
    rows = task_text(run)
    assert rows["input_ids"][:].shape == rows["attention_mask"][:].shape == (10, 12)
    assert 0 < rows["attention_mask"][:].sum() < 120
