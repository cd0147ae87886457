"""Keep one component per block, drop the rest, and score what that changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import manticore
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.run import Run
from manticore.stages.stage import Stage


class Discretize(Stage):
    name = "discretize"

    def plan_line(self, recipe: Recipe) -> str:
        return "one component per block"

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        tuning = recipe.finetune
        return {"path": recipe.discretize.path, "start": tuning.start, "test_examples": tuning.test_examples}

    def work(self, run: Run, folder: Path) -> Outcome:
        searched = run.searched()
        path = run.recipe.discretize.path or manticore.discretize(searched).config.path
        run.save(run.discrete(path, run.recipe.seed), folder)
        scored = run.recipe.finetune.test_examples
        before = manticore.evaluate(searched, run.task, max_examples=scored)
        after = manticore.evaluate(manticore.discretize(searched, path), run.task, max_examples=scored)
        metric = run.task.primary_metric
        found = {
            "path": path,
            "loss_before": before["loss"],
            "loss_after": after["loss"],
            "metric_before": before[metric],
            "metric_after": after[metric],
        }
        summary = f"{run.path_text(path)}, loss {before['loss']:.3f} soft, {after['loss']:.3f} discrete"
        return Outcome({"discretize": found}, summary)
