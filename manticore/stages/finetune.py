"""Train the discretized hybrid end to end: the model that a run leaves behind."""

from __future__ import annotations

from pathlib import Path

import manticore
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.run import Run
from manticore.stages.stage import MODEL, Stage, amount, whole_flops


class Finetune(Stage):
    name = "finetune"

    def plan_line(self, recipe: Recipe) -> str:
        return amount(recipe.finetune, recipe)

    def product(self, run: Run) -> Path | None:
        return run.path / MODEL

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.runs.models import load_hybrid
        from manticore.training.classifiers import loading_class

        result = manticore.finetune(
            load_hybrid(run.path / "discretize" / MODEL),
            run.task,
            seed=run.recipe.seed,
            out=folder,
            resume=True,
            progress=run.progress(self.name),
            **whole_flops(run.recipe.finetune.model_dump(exclude={"start"})),
        )
        run.save(result.model, folder)
        run.folder.replace(MODEL, folder / MODEL)
        metric = run.task.primary_metric
        results = {
            "finetune": result.to_dict(),
            "discretize": {"loss_finetuned": result.metrics["loss"], "metric_finetuned": result.metrics[metric]},
            "model": {"path": MODEL, "loads_with": loading_class(result.model)},
        }
        return Outcome(results, f"{metric} {result.metrics[metric]:.3f} after {result.steps} steps")
