"""What a search over paths is: it asks for candidates at marks, looks at their curves, and chooses.

A method is a generator: it yields lists of (path, mark) and finds their points in the curves when it goes on, or it
yields :class:`Shared` and finds ``curves.shared``. What it asks next depends on the curves and the seed alone, never on
who trained what first, so that any number of workers, a resumed search and a replay on recorded curves
(``benchmarks/search_methods.py``) take the same decisions.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from manticore.search.curves import Curves
from manticore.search.space import Path, Space

Request: TypeAlias = tuple[Path, int]
"""A candidate, and the mark that it is to be trained to and scored at."""


@dataclass(frozen=True)
class Shared:
    """Asks what paths score with weights that they share: one sampled path per step trains the supernet."""

    space: Space
    """The paths to sample and to score."""
    units: float
    """What the training costs."""
    sampling: str
    """How paths are drawn (:mod:`manticore.search.sampling`)."""


@dataclass(frozen=True)
class Choice:
    """What a search has chosen."""

    path: Path
    mark: int
    """Where the choice was made."""
    reason: str
    """Why, in a sentence."""


Search: TypeAlias = Generator[list[Request] | Shared, None, Choice]


class PathMethod(Protocol):
    """A method of searching for a path; its options are keywords with defaults, by the names of the settings."""

    def __call__(self, curves: Curves, seed: int) -> Search:
        """Search in ``curves.space``, at ``curves.marks``."""
