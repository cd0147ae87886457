"""Learn which component each block should use."""

from __future__ import annotations

from pathlib import Path

import manticore
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.run import Run
from manticore.stages.stage import Stage, amount, whole_flops


class Search(Stage):
    name = "search"

    def plan_line(self, recipe: Recipe) -> str:
        section = self.settings(recipe)
        return f"{section.method}, {amount(section, recipe)}"

    def work(self, run: Run, folder: Path) -> Outcome:
        section = self.settings(run.recipe)
        result = manticore.search(
            run.aligned(run.recipe.seed),
            run.task,
            seed=run.recipe.seed,
            out=folder,
            resume=True,
            progress=run.progress(self.name),
            **whole_flops(section.model_dump()),
        )
        run.save(result.model, folder)
        found = {"method": section.method, "order": section.order, **result.to_dict()}
        return Outcome({"search": found}, f"path {run.path_text(result.path)}")
