"""A recipe: everything one run does, from pretrained components to the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from manticore.option_types import Name, Seed
from manticore.schema.options import trains_candidates
from manticore.schema.sections import (
    Align,
    Compare,
    Component,
    Distill,
    Finetune,
    Pretrain,
    Report,
    Search,
    TaskChoice,
)
from manticore.settings import Combine, Discretize, Settings, Training

SHARED = frozenset({*Training.model_fields, "lr"})
"""What candidates of a search and fine-tuning have in common."""


class Recipe(Settings):
    """What `manticore run` does. Sections have defaults; `null` skips align, search, compare or report; without search
    and discretize the hybrid stays what it is while soft, all components side by side."""

    name: Name
    """Name of the run folder."""
    seed: Seed = 0
    """Every random stream is derived from it."""
    pretrain: list[Pretrain] = Field(default=[])
    """Small models to pretrain first."""
    components: Annotated[list[Component], Field(min_length=2)]
    """The models that go into the hybrid."""
    task: TaskChoice
    """What the hybrid is searched, fine-tuned and compared on."""
    combine: Combine = Combine()
    align: Align | None = Align()
    search: Search | None = Search()
    discretize: Discretize | None = Discretize()
    distill: Distill | None = None
    """Let the discretized hybrid learn from a teacher; left out: it does not. With all defaults: `distill: {}`."""
    finetune: Finetune = Finetune()
    compare: Compare | None = Compare()
    report: Report | None = Report()

    @property
    def alike(self) -> bool:
        """Whether a search trains as fine-tuning does, and on the same, so that the one may go on with the other."""
        search = self.search
        if search is None or search.task_options:
            return False
        return all(getattr(search, name) == getattr(self.finetune, name) for name in SHARED)

    def settled(self) -> Recipe:
        """With what one section takes from another written out: candidates of a search train as fine-tuning does.

        A recipe that was written out reads as itself: what a section says, it does not take from another.
        """
        if self.search is None or not trains_candidates(self.search.method):
            return self
        shared = SHARED - self.search.model_fields_set
        told = {name: getattr(self.finetune, name) for name in shared}
        return self.model_copy(update={"search": self.search.model_copy(update=told)})
