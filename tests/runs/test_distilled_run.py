"""A run that distils: the stage, its place among the others, its price, and what the pages say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from once import once
from safetensors.torch import load_file
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.experiments.rows import SUPERNET
from manticore.plan.planner import plan
from manticore.report.results import read_results
from manticore.runs.folder import RESULTS, create_run
from manticore.schema.loading import load_recipe
from manticore.schema.problems import RecipeError
from manticore.stages.pipeline import execute

TEXT = ["task={name: text, options: {source: %s, length: 16, max_bytes: 20000}}", "search=null"]
DISTILL = "distill={steps: 4, batch_size: 8, save_steps: 1, test_examples: 8}"
SHORT = ["finetune={steps: 5, batch_size: 8, test_examples: 8}", "discretize.path=[1,0]"]


def recipe(mini: Path, *overrides: str) -> Any:
    text = [TEXT[0] % (mini.parent / "text.py"), TEXT[1], *SHORT]
    return load_recipe(str(mini), [*text, *overrides])


@pytest.fixture(scope="module")
def finished(mini_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    made = recipe(mini_recipe, DISTILL, "compare={seeds: [0, 1], learning_rates: [1e-3], ensemble: false}")
    folder = once(tmp_path_factory, "distilled", lambda folder: execute(create_run(made, str(folder / "run"))))
    return folder / "run", json.loads((folder / "run" / RESULTS).read_text(encoding="utf-8"))


def test_a_run_distils_between_discretizing_and_fine_tuning(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    found = results["distill"]
    assert found["teacher"] == "supernet"
    assert [(phase["name"], phase["steps"]) for phase in found["phases"]] == [("blocks", 1), ("logits", 3)]
    assert found["flops"] == sum(phase["student_flops"] + phase["teacher_flops"] for phase in found["phases"])
    assert found["metrics_before"]["loss"] == pytest.approx(results["discretize"]["loss_after"], abs=1e-6)
    before, after = (load_file(out / stage / "model/model.safetensors") for stage in ("discretize", "distill"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # fine-tuning begins with what has learned: a small rate has not undone it
    tuned = load_file(out / "model/model.safetensors")
    moved = sum(float((tuned[n] - after[n]).abs().sum()) for n in after)
    assert 0 < moved < sum(float((tuned[n] - before[n]).abs().sum()) for n in before)


def test_its_flops_are_part_of_everything_that_the_hybrid_cost(finished: tuple[Path, dict[str, Any]]) -> None:
    _, results = finished
    fine, everything = results["compare"]["budgets"]
    assert fine["flops"] == results["finetune"]["flops"]
    assert everything["flops"] == fine["flops"] + results["align"]["flops"] + results["distill"]["flops"]
    rows = {(row["model"], row["budget"]): row for row in results["compare"]["rows"]}
    hybrid = rows["hybrid", 0]
    assert hybrid["seeds"][0]["metrics"] == results["finetune"]["metrics"]
    # the soft supernet was not distilled, and has that for its training
    assert rows[SUPERNET, 1]["seeds"][0]["steps"] > rows[SUPERNET, 0]["seeds"][0]["steps"]
    assert any("the one model that was distilled" in note for note in results["compare"]["notes"])


def test_the_pages_tell_of_the_teacher(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    page = (out / "report.html").read_text()
    assert "What the hybrid learned from its teacher" in page
    assert "Teacher: supernet." in page
    assert "distil, teacher included" in page
    assert "| distill | text | 4 |" in (out / "model/README.md").read_text()
    record = read_results(out).distill
    assert record is not None
    assert record.phases[1].teacher_flops == results["distill"]["phases"][1]["teacher_flops"]
    assert [step.step for step in record.history][-1] == 3


@pytest.mark.parametrize(("teacher", "phases"), [("supernet", "auto"), ("gpt", "auto"), ("mamba", "logits")])
def test_the_plan_prices_what_a_run_counts(mini_recipe: Path, tmp_path: Path, teacher: str, phases: str) -> None:
    asked = DISTILL.replace("steps: 4", f"steps: 8, teacher: {teacher}, phases: {phases}")
    made = recipe(mini_recipe, asked, "compare=null", "report=null", "finetune.steps=1")
    planned = next(stage for stage in plan(made.recipe, device_memory=1e12).stages if stage.name == "distill")
    found = execute(create_run(made, str(tmp_path / "run")))["distill"]
    assert planned.steps == found["steps"] == 8
    # norms of the last component do not run where blocks are compared
    assert planned.flops == pytest.approx(found["flops"], rel=0.01)


def test_where_a_search_trains_candidates_the_path_is_distilled_from_its_beginning(
    mini_recipe: Path, tmp_path: Path
) -> None:
    made = recipe(
        mini_recipe, DISTILL, "search={}", "discretize={}",
        "compare={seeds: [0], learning_rates: [1e-3], ensemble: false}",
        "finetune={steps: 13, batch_size: 4, test_examples: 8, save_steps: 13}",
    )  # fmt: skip
    results = execute(create_run(made, str(tmp_path / "run")))
    assert results["finetune"]["begun_flops"] == 0
    everything = results["align"]["flops"] + results["search"]["flops"] + results["distill"]["flops"]
    assert results["compare"]["budgets"][1]["flops"] == results["finetune"]["flops"] + everything


def test_a_path_of_one_component_has_nothing_to_learn(mini_recipe: Path, tmp_path: Path) -> None:
    made = recipe(mini_recipe, DISTILL, "discretize.path=[1,1]", "compare=null")
    results = execute(create_run(made, str(tmp_path / "run")))
    assert (results["distill"]["steps"], results["distill"]["flops"]) == (0, 0)
    assert "learned from its teacher" not in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["distill={teacher: gtp}"], r"distill.teacher: no component is called 'gtp'. Did you mean 'gpt'\?"),
        (["distill={teacher: ./nowhere}"], r"distill.teacher: no folder ./nowhere"),
        (["distill={alpha: 1}"], r"distill.alpha: wrong value \(got 1, expected < 1\)"),
        (["distill={steps: 3, budget_flops: 10}"], r"distill: steps and budget_flops are both given"),
        (["distill={phases: block}"], r"distill.phases: not a choice \(got 'block'\). Did you mean 'blocks'"),
        (["distill={tempreature: 2}"], r"distill.tempreature: unknown key. Did you mean 'temperature'"),
        (["distill={}", "discretize=null"], "distill: what stays soft is its own teacher"),
        (["distill={}", "task={name: mad/memorization}", "search={}"], r"distill.teacher: 'supernet' knows no token"),
        (
            ["distill={teacher: gpt}", "task={name: mad/memorization}", "search={method: darts}"],
            r"distill.teacher: 'gpt' knows no token of 'mad/memorization'.*Fix: the folder",
        ),
    ],
)
def test_what_is_wrong_with_the_section_is_told_with_its_place(
    mini_recipe: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said) as refused:
        recipe(mini_recipe, *overrides)
    assert len(refused.value.problems) == 1
    assert str(refused.value.problems[0].place).startswith("override")


def test_a_task_with_classes_is_refused_before_anything_runs(mini_recipe: Path) -> None:
    words = ["check", str(mini_recipe), "distill={}", "task={name: lra/listops}", "search={method: darts}"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "distill: task 'lra/listops' has classes" in refused.output


def test_a_search_that_learns_weights_makes_a_teacher_for_a_vocabulary_of_its_own(mini_recipe: Path) -> None:
    made = load_recipe(str(mini_recipe), ["distill={}"]).recipe
    assert made.distill is not None
    assert made.distill.teacher == "supernet"
    assert load_recipe(str(mini_recipe), ["distill=null"]).recipe.distill is None
