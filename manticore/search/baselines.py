"""What a search has to beat: paths drawn at random, successive halving, and all paths (the landscape)."""

from __future__ import annotations

import random

from manticore.search.choice import Choice, Search
from manticore.search.curves import MARKS, Curves

FIRST_RUNG = 4
"""Mark of halving's first decision."""


def random_paths(curves: Curves, seed: int, *, candidates: int = 2) -> Search:
    """Some paths drawn at random, each trained for a whole unit: the fair baseline.

    Args:
        curves: with the space.
        seed: of the draw.
        candidates: how many are drawn, without putting back.
    """
    paths = curves.space.paths()
    drawn = random.Random(seed).sample(paths, min(candidates, len(paths)))
    mark = curves.marks[-1]
    yield [(path, mark) for path in drawn]
    return Choice(curves.best(drawn, mark), mark, f"best of {len(drawn)} paths drawn at random")


def exhaustive(curves: Curves, seed: int) -> Search:
    """All paths for a whole unit."""
    paths, mark = curves.space.paths(), curves.marks[-1]
    yield [(path, mark) for path in paths]
    return Choice(curves.best(paths, mark), mark, f"best of all {len(paths)} paths after {mark}/{MARKS} of a unit")


def halving(curves: Curves, seed: int) -> Search:
    """Successive halving: the better half of all paths goes on, from a third of a unit to two thirds, and so on."""
    left, mark = curves.space.paths(), min(FIRST_RUNG, curves.marks[-1])
    while True:
        yield [(path, mark) for path in left]
        if len(left) <= 2 or mark == curves.marks[-1]:
            return Choice(curves.best(left, mark), mark, f"last of the paths halved by {mark}/{MARKS} of a unit")
        left = sorted(left, key=lambda path: (-curves.score(path, mark), curves.loss(path, mark), path))
        left = left[: (len(left) + 1) // 2]
        mark = min(2 * mark, curves.marks[-1])
