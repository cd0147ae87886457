"""Train the discretized hybrid end to end: the model that a run leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import manticore
from manticore.file_names import MODEL
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.combine import WeighedText, weighed_texts
from manticore.stages.commands import evaluate_command
from manticore.stages.discretize import DiscretizeRecord
from manticore.stages.records import Record, Step
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan, amount

if TYPE_CHECKING:
    from manticore.plan.costing import Costing


@dataclass(frozen=True)
class FinetuneRecord(Record):
    steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    metrics_float32: dict[str, float | None] | None = None
    history: tuple[Step, ...] = ()
    begun_flops: float = 0.0
    """Of ``flops``, those that a search had spent on the path before: fine-tuning went on from there."""
    texts: tuple[WeighedText, ...] = ()
    """As those of combining, after fine-tuning."""


@dataclass(frozen=True)
class SavedModel(Record):
    path: str = ""
    loads_with: str = ""


class Finetune(Stage):
    name = "finetune"
    note: ClassVar[str] = "finetune.json"

    def plan_line(self, recipe: Recipe) -> str:
        return amount(recipe.finetune, recipe)

    def product(self, run: Run) -> Path | None:
        return run.path / MODEL

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        case = costing.tuned["costliest"]
        costing.save_model(case.held)
        costing.save_checkpoints(case.held)
        what = "costliest path" if costing.paths else "all components"
        yield costing.training(self.name, what, case, costing.paths.get("costliest"))

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.training.begun import Begun
        from manticore.training.classifiers import loading_class
        from manticore.training.saved_models import load_hybrid

        tuning, soft = run.recipe.finetune, run.recipe.discretize is None
        if soft:
            model, checkpoints = run.soft(run.recipe.seed), None
        else:
            model = load_hybrid(run.path / ("discretize" if run.recipe.distill is None else "distill") / MODEL)
            checkpoints = run.begun(run.results_of("discretize")["path"])
        if run.by_candidates:
            # what every candidate was planned for: a cheap path makes more steps of it
            tuning = tuning.model_copy(update={"steps": None, "budget_flops": run.unit_flops(run.task, tuning)})
        result = manticore.finetune(
            model if checkpoints is None else Begun(model, checkpoints),
            run.task,
            tuning,
            seed=run.recipe.seed,
            out=folder,
            resume=True,
            progress=run.progress(self.name),
        )
        run.save(result.model, folder)
        run.folder.replace(MODEL, folder / MODEL)
        metric = run.task.primary_metric
        results = {
            "finetune": FinetuneRecord.written(
                **result.to_dict(),
                begun_flops=0 if checkpoints is None else run.results_of("search")["trained_flops"],
                **({"texts": weighed_texts(result.model, run.task)} if soft else {}),
            ),
            "model": SavedModel.written(path=MODEL, loads_with=loading_class(result.model)),
        }
        if not soft:
            results["discretize"] = DiscretizeRecord.written(
                loss_finetuned=result.metrics["loss"], metric_finetuned=result.metrics[metric]
            )
        return Outcome(results, f"{metric} {result.metrics[metric]:.3f} after {result.steps} steps")

    def next_command(self, out: str, task: str) -> str:
        return evaluate_command(out, task)
