"""The shipped recipe of two parents that know different things, in its smallest form, and what stays soft."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from once import once
from transformers import AutoModelForCausalLM

from manticore.errors import ManticoreError
from manticore.plan.planner import plan
from manticore.report import read_results
from manticore.runs.folder import RESULTS, RunFolder, create_run, open_run
from manticore.runs.reporter import LogReporter
from manticore.schema.loading import load_recipe
from manticore.stages.pipeline import execute
from manticore.stages.prerequisites import missing_prerequisites
from manticore.stages.run import Run

SMALL = [
    *(
        f"pretrain.{name}.{option}"
        for name in ("code", "english")
        for option in ["layers=2", "width=32", "steps=8", "max_bytes=60000", "vocab_size=300", "length=32", "lr=0.01"]
    ),
    "task.options.length=32",
    "task.options.max_bytes=60000",
    "finetune.steps=2",
    "finetune.warmup_steps=0",
    "finetune.batch_size=4",
    "finetune.test_examples=16",
    "compare.workers=1",
    "compare.learning_rates=[5e-4]",
    "compare.budgets=[0, 1]",
]


class StopsInCompare(LogReporter):
    def started(self, stage: str, plan: str) -> None:
        if stage == "compare":
            raise KeyboardInterrupt


def small(*overrides: str) -> Any:
    return load_recipe("two-sources", [*SMALL, *overrides], needs=missing_prerequisites)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    place = once(tmp_path_factory, "two sources", lambda folder: execute(create_run(small(), str(folder / "run"))))
    folder = open_run(place / "run")
    return folder, json.loads((folder.path / RESULTS).read_text(encoding="utf-8"))


def test_it_runs_without_a_search_and_compares_the_hybrid_with_its_parents(
    run: tuple[RunFolder, dict[str, Any]],
) -> None:
    folder, results = run
    assert {"align", "search", "discretize"}.isdisjoint(results)
    rows = {row["model"]: row for row in results["compare"]["rows"]}
    assert {"code", "english", "hybrid"} <= set(rows)
    for row in results["compare"]["rows"]:
        assert {"loss:code", "loss:english", "bits_per_byte:english"} <= set(row["seeds"][0]["metrics"])
    tuned = [r for r in results["compare"]["rows"] if r["model"] == "hybrid" and r["seeds"][0]["steps"] == 2]
    assert tuned[0]["seeds"][0]["metrics"]["loss"] == pytest.approx(results["finetune"]["metrics"]["loss"], abs=1e-6)
    # nothing speaks of a path, for there is none
    assert read_results(folder.path).path == ()
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    assert "discrete" not in page
    assert f"english {rows['hybrid']['seeds'][0]['metrics']['loss:english']:.3f}" in page


def test_what_it_leaves_behind_interpolates_and_keeps_the_bound(run: tuple[RunFolder, dict[str, Any]]) -> None:
    folder, _ = run
    model = AutoModelForCausalLM.from_pretrained(folder.path / "model")
    assert model.config.output == "bayes"
    rows = Run(folder, LogReporter()).task.data["test"].select(range(12))[:]
    untrained = AutoModelForCausalLM.from_pretrained(folder.path / "combine" / "model").eval()
    losses = {}
    with torch.no_grad():
        models = {"hybrid": untrained, **{k: untrained.component(k).eval() for k in range(2)}}
        for name, each in models.items():
            logits = each(rows["input_ids"]).logits.float()
            losses[name] = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), rows["input_ids"][:, 1:].flatten(), reduction="none"
            ).view(len(rows["input_ids"]), -1).mean(1)  # fmt: skip
    best = torch.minimum(losses[0], losses[1])
    length = rows["input_ids"].shape[1] - 1
    bound = best + math.log(2) / length - math.log1p(-model.config.forgetting)
    assert bool((losses["hybrid"] <= bound + 1e-5).all())


def test_it_is_planned_and_checked_in_its_own_size() -> None:
    recipe = load_recipe("two-sources", needs=missing_prerequisites).recipe
    found = plan(recipe, device_memory=16e9, accelerator=False)
    assert [stage.name for stage in found.stages] == ["pretrain", "pretrain", "combine", "finetune", "compare"]
    assert found.runnable
    assert found.paths == {}
    assert set(found.parameters) == {"supernet"}
    assert found.stages[-1].flops > found.stages[-2].flops > 0


def test_a_changed_source_is_not_resumed(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("".join(f"Sentence {i} is about {i * i} of {i % 7} things.\n" for i in range(600)))
    folder = create_run(small(f"task.options.sources.english.text={text}"), str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        execute(folder, StopsInCompare())
    lineage = json.loads((folder.path / "lineage.json").read_text())["data"]
    assert {"train", "source code, train", "source english, test"} <= set(lineage)
    text.write_text(text.read_text().replace("Sentence 7 ", "Sentence 8 "))
    with pytest.raises(ManticoreError, match="of other data: it was started with data, ") as caught:
        execute(open_run(folder.path))
    assert "data, source english, train=" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search={}"], "discretize: a search looks for what to keep. Fix: search: null, for a hybrid that stays soft"),
        (["pretrain.english.tokenizer_texts=[stdlib]"], "pretrain[1].tokenizer_texts: another text than 'code' has"),
        (["pretrain.code.tokenizer_texts=null"], "give both tokenizer_texts: [stdlib, docstrings]"),
        (["discretize={}"], "or discretize: null, for a hybrid that stays soft"),
        (
            ["pretrain.english.data_seed=1", "pretrain.code.data_seed=1", "task.options.data_seed=0"],
            "trained on what it is scored on",
        ),
        (["task.options.sources.code.share=0.4"], "the shares sum to 0.9 (expected 1)"),
    ],
)
def test_a_check_understands_it(overrides: list[str], said: str) -> None:
    with pytest.raises(ManticoreError) as caught:
        small(*overrides)
    lines = str(caught.value).split("\n")
    assert all(said in line for line in lines)
    assert len(lines) == (2 if "data_seed" in overrides[0] else 1)
