"""What an architecture search can choose: designs, which are integers that decode to a stack."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from manticore.stacks.configuration import StackConfig

Design: TypeAlias = tuple[int, ...]
"""A candidate: one integer per position of the space."""


class DesignSpace(Protocol):
    """Designs of one length, with the legal values of every position."""

    @property
    def key(self) -> dict[str, Any]:
        """What it depends on, as JSON values."""

    @property
    def values(self) -> Sequence[Sequence[int]]:
        """The values that each position may take, whatever the others are."""

    @property
    def labels(self) -> Sequence[tuple[str, Sequence[str | int]]]:
        """Of every position its name, and what its values are called, in their order: for dashboards."""

    @property
    def size(self) -> int:
        """How many designs there are; where some combinations mean the same, at most so many."""

    def designs(self) -> Iterator[Design]:
        """Every legal design once; only small spaces are listed."""

    def problem(self, design: Design) -> str | None:
        """Why a design is not legal; None where it is."""

    def repaired(self, design: Design, draws: random.Random) -> Design:
        """The design itself where it is legal, else a legal one near it."""

    def spelled(self, design: Design) -> str:
        """As text, in file names and records: ``AAMMMM``, ``21211-31112``."""

    def read(self, text: str) -> Design:
        """From :meth:`spelled`.

        Raises:
            ManticoreError: a wrong length, or an illegal value, with its position and what is legal there.
        """

    def config(self, design: Design, *, vocab_size: int, positions: int) -> StackConfig:
        """The stack, at the width of the search."""
