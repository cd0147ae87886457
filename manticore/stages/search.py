"""Learn which component each block should use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, ClassVar

import manticore
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.records import Record, Step, Weights
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan, amount

if TYPE_CHECKING:
    from manticore.plan.costing import Costing


@dataclass(frozen=True)
class CurvePoint(Record):
    """A candidate at a mark, on held-out data: ``loss`` in nats per scored position, ``metric`` the task's own."""

    mark: int = 0
    """In twelfths of a unit."""
    steps: int = 0
    flops: float | None = None
    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class CandidateRecord(Record):
    """A path that a search has trained; ``flops`` are those of its training and scoring."""

    path: tuple[int, ...] = ()
    points: tuple[CurvePoint, ...] = ()
    failed: str = ""
    chosen: bool = False
    flops: float | None = None


@dataclass(frozen=True)
class SearchRecord(Record):
    method: str = ""
    order: str = ""
    steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    history: tuple[Step, ...] = ()
    weights: Weights = ()
    path: tuple[int, ...] = ()
    candidates: tuple[CandidateRecord, ...] = ()
    """Empty where mixture weights were learned."""
    unit_flops: float | None = None
    """Training FLOPs of one fine-tuning."""
    trained_flops: float | None = None
    """What the path found had cost when the search ended; fine-tuning goes on from there."""
    reason: str = ""
    """Why the search ended there."""
    metric: str = ""
    higher_is_better: bool = True


class Search(Stage):
    name = "search"
    note: ClassVar[str] = "search.json"

    def plan_line(self, recipe: Recipe) -> str:
        section = self.settings(recipe)
        return f"{section.method}, {amount(section, recipe)}"

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        case = costing.measure(self.name, costing.setting(self.settings(costing.recipe)), None)
        costing.save_model(costing.tuned["supernet"].held)
        costing.save_checkpoints(case.held)
        yield costing.training(self.name, "supernet", case, None)

    def work(self, run: Run, folder: Path) -> Outcome:
        section = self.settings(run.recipe)
        result = manticore.search(
            run.aligned(run.recipe.seed),
            run.task,
            section,
            seed=run.recipe.seed,
            out=folder,
            resume=True,
            progress=run.progress(self.name),
        )
        run.save(result.model, folder)
        found = SearchRecord.written(method=section.method, order=section.order, **result.to_dict())
        return Outcome({"search": found}, f"path {run.path_text(result.path)}")

    def next_command(self, out: str) -> str:
        return f"manticore discretize {quote(out)} -o {quote(out + '-small')}"
