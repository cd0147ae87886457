"""A recipe: everything one run does, from pretrained components to the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from manticore.schema.sections import (
    Align,
    Compare,
    Component,
    Finetune,
    Pretrain,
    Report,
    Search,
    TaskChoice,
)
from manticore.settings import Combine, Discretize, Name, Seed, Settings


class Recipe(Settings):
    """What `manticore run` does. Sections have defaults; `null` skips align, search, compare or report."""

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
    discretize: Discretize = Discretize()
    finetune: Finetune = Finetune()
    compare: Compare | None = Compare()
    report: Report | None = Report()
