"""Blockwise: the parents, then block after block of the better one with another component."""

from __future__ import annotations

from collections.abc import Iterator

from manticore.search.choice import Choice, Search
from manticore.search.curves import MARKS, Curves
from manticore.search.space import Path, handovers

DECIDING = 6
"""The mark where candidates are compared: half a unit."""
SINGLE = 4
"""Up to so many blocks are flipped one by one; of more, halves first, then quarters, down to single blocks."""


def blockwise(curves: Curves, seed: int, *, max_handovers: int | None = None) -> Search:
    """All parents to half a unit; then each block of the best one in turn takes another component, if that is better.

    Where the best parent may not be chosen, its nearest path that may is trained too, and the better one of those that
    may is where this begins.

    Args:
        curves: with the space.
        seed: not needed, nothing is drawn.
        max_handovers: paths that change components more often are left out; None: none are.
    """
    mark = min((mark for mark in curves.marks if mark >= DECIDING), default=curves.marks[-1])
    tried: list[Path] = list(curves.space.parents)
    yield [(path, mark) for path in tried]
    start = here = curves.best(tried, mark)
    if not curves.space.may_choose(here):
        # flips alone may lead from this parent to nothing that is allowed
        near = curves.space.nearest(here)
        yield [(near, mark)]
        tried += [path for path in [near] if path not in tried]
        start = here = curves.best([path for path in tried if curves.space.may_choose(path)], mark)
    for blocks in groups(curves.space.num_blocks):
        fresh = [
            path
            for path in curves.space.flips(here, blocks)
            if path not in tried and (max_handovers is None or handovers(path) <= max_handovers)
        ]
        if not fresh:
            continue
        yield [(path, mark) for path in fresh]
        tried += fresh
        here = curves.best([here, *fresh], mark)
    changed, began = sum(a != b for a, b in zip(start, here)), "best parent"
    if start not in curves.space.parents:
        began = "path within the limits that is nearest to the best parent"
    why = f"best of {len(tried)} paths after {mark}/{MARKS} of a unit, {changed} blocks away from the {began}"
    return Choice(here, mark, why)


def groups(num_blocks: int) -> Iterator[tuple[int, ...]]:
    """The blocks that are flipped together, coarse to fine."""
    size = 1 if num_blocks <= SINGLE else num_blocks // 2
    while size:
        for first in range(0, num_blocks, size):
            yield tuple(range(first, min(first + size, num_blocks)))
        size //= 2
