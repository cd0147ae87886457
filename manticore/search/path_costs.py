"""What a step of every path costs, from a few that are measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from manticore.search.space import Path


class PathCosts:
    """FLOPs of paths.

    Where they add up block by block, those of any path follow exactly from the components alone and from paths with
    one hand-over: a → b → c costs what a → b and b → c cost together, less what b alone costs.

    Args:
        measure: FLOPs of a path.
        additive: whether they add up: forward passes do, and training steps in which every embedding trains, since
            gradients then go through every layer. Else every path that is asked for is measured.
    """

    def __init__(self, measure: Callable[[Path], int], *, additive: bool) -> None:
        self._measure, self._additive = measure, additive
        self._known: dict[Path, int] = {}

    def __call__(self, path: Path) -> int:
        """FLOPs of a path."""
        turns = [n for n in range(1, len(path)) if path[n] != path[n - 1]]
        if not self._additive or len(turns) < 2:
            return self._measured(path)
        blocks = len(path)
        pairs = [(path[n - 1],) * n + (path[n],) * (blocks - n) for n in turns]
        between = [(path[n],) * blocks for n, _ in itertools.pairwise(turns)]
        return sum(map(self._measured, pairs)) - sum(map(self._measured, between))

    def _measured(self, path: Path) -> int:
        if path not in self._known:
            self._known[path] = self._measure(path)
        return self._known[path]
