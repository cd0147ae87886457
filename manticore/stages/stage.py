"""What a stage knows: its settings, what it will do in a phrase, its work, its cost, the command that comes next.

A stage's file imports nothing heavy at its top, so that checking a recipe and ``manticore --help`` stay quick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.settings import Settings

if TYPE_CHECKING:
    from manticore.plan.costing import Costing
    from manticore.stages.run import Run


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes, with the recipe's settings."""

    name: str
    what: str
    trained: int | None
    """Parameters; the largest, where several models train."""
    step_flops: float | None
    """Per optimizer step, over all devices; the largest, where that depends on the path."""
    steps: float | None
    flops: float
    """In all."""
    bytes: float | None
    """Peak on each device, by the way that fits, else by the smaller one."""
    verdict: str


class Stage(ABC):
    """One step of a run. A recipe has a section of its name, and leaves the stage out where that is empty."""

    name: str
    note: ClassVar[str | None] = None
    """What its verb notes beside a model is in a file of this name."""
    section: ClassVar[type[Settings] | None] = None
    """What the recipe's section is read as, of a stage that another package brings; others stand in the recipe."""
    after: str = "compare"
    """The built-in stage that such a one comes after, whether or not the recipe has that."""

    def settings(self, recipe: Recipe) -> Any:
        """The recipe's section for this stage; empty or None: it is left out."""
        return getattr(recipe, self.name)

    @abstractmethod
    def plan_line(self, recipe: Recipe) -> str:
        """What it will do, in a few words."""

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        """What determines its result, beside the seed and the stages before it; JSON values."""
        found: Mapping[str, Any] = self.settings(recipe).model_dump(mode="json")
        return found

    def read(self, run: Run) -> Mapping[str, str | None]:
        """Name → digest of what it reads from outside the run folder."""
        return run.read()

    def product(self, run: Run) -> Path | None:
        """The folder of a model that it leaves behind, beside its own folder."""
        return None

    @abstractmethod
    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        """What it takes: rows of the plan. What it leaves on the disk, it tells ``costing``."""

    @abstractmethod
    def work(self, run: Run, folder: Path) -> Outcome:
        """Do it, and return its parts of ``results.json``.

        Args:
            run: the recipe, and what earlier stages have left.
            folder: the stage's own. If it holds an interrupted attempt, that is continued.
        """


def amount(training: Any, recipe: Recipe) -> str:
    """How long a training on the recipe's task lasts, and what becomes of a vocabulary that does not stay."""
    from manticore.schema.options import reads_tokenizer

    if training.budget_flops is not None:
        length = f"{training.budget_flops:.3g} FLOPs"
    else:
        length = f"{training.steps} steps" if training.steps is not None else "the default number of steps"
    fresh = "" if reads_tokenizer(recipe.task.name) else " (its own vocabulary: fresh embeddings and heads)"
    return f"{length} on {recipe.task.name}{fresh}"
