"""A recipe with a fresh branch beside a parent: it is named like a layer, planned, and no parent in the comparison."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from manticore.plan.planner import plan
from manticore.runs.folder import create_run
from manticore.schema.loading import load_recipe
from manticore.stages.pipeline import execute

OVERRIDES = [
    "components=[{name: gpt, source: gpt}, {name: branch, source: fresh:mh-linear-attention+swiglu}]",
    "search=null",
    "discretize.path=[1,1]",
    "finetune={steps: 4, batch_size: 8}",
    "compare={seeds: [0], learning_rates: [1e-3]}",
]


def test_what_stays_in_the_branch_is_a_hybrid_and_the_parent_its_only_rival(mini_recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(str(mini_recipe), OVERRIDES)
    planned = plan(loaded.recipe, device_memory=1e12)
    assert [component.origin for component in planned.components][1] == "fresh layers beside gpt"
    assert planned.projectors == []
    results = execute(create_run(loaded, str(tmp_path / "run")))
    assert results["combine"]["feature_spaces"] == [0, 0]
    assert results["combine"]["fresh"] == [1]
    assert [component["layers"] for component in results["components"]] == [3, 4]
    assert [component["source"] for component in results["components"]] == ["gpt", "fresh:mh-linear-attention+swiglu"]
    assert results["align"]["translations"] == []
    compare = results["compare"]
    # one parent alone makes no ensemble
    assert {row["model"] for row in compare["rows"]} == {"gpt", "supernet (soft)", "hybrid"}
    hybrid = next(row for row in compare["rows"] if row["model"] == "hybrid")
    assert planned.parameters["costliest"] == hybrid["parameters"]
    stages = {stage.name: stage for stage in planned.stages}
    assert stages["compare"].what.startswith("3 models")
    assert AutoConfig.from_pretrained(tmp_path / "run/model").path == [1, 1]
    page = (tmp_path / "run/report.html").read_text()
    assert "and no projectors" in page
    assert "branch, as found" not in page
