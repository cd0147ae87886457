"""A recipe: everything one run does, from pretrained components to the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manticore.schema.sections import (
    Align,
    Combine,
    Compare,
    Component,
    Count,
    Discretize,
    Finetune,
    Positive,
    Report,
    Search,
    Section,
    TaskChoice,
)

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]


class Pretrain(Section):
    """A small model pretrained on the spot, kept in the cache and used as a component."""

    name: RunName
    """What `components` calls it as a source."""
    family: Literal["gpt-neo", "mamba"]
    """Architecture."""
    layers: Count
    """Depth."""
    width: Count
    """Width of the hidden states."""
    vocab_size: Count = 1024
    """Tokens of the byte-pair tokenizer that is trained on the text."""
    text: Annotated[str, Field(min_length=1)] = "stdlib"
    """A file, a folder, a datasets id, or stdlib: the sources of Python's standard library."""
    length: Count = 128
    """Tokens per sequence."""
    steps: Count = 300
    """Optimizer steps."""
    batch_size: Count = 16
    """Sequences per step."""
    lr: Positive = 1e-3
    """Peak learning rate."""


class Recipe(Section):
    """What `manticore run` does. A section left out has its defaults; `null` skips align, search, compare or report."""

    name: RunName
    """Name of the run folder."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Every random stream is derived from it."""
    pretrain: list[Pretrain] = []
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
