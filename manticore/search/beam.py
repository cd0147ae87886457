"""The paths that shared weights are asked about: all, or a beam through the blocks where they are too many."""

from __future__ import annotations

import math
from collections.abc import Callable

from manticore.search.curves import Point
from manticore.search.sampling import Sampler
from manticore.search.space import Path, Space

MOST_SCORED = 256
"""Up to so many paths, all are scored; of more, no more than this."""

FEWEST_EXAMPLES = 32
"""Held-out examples that each of them is scored on, at least."""


def compared_examples(most: int, training: float, paths: int, forward: float) -> int:
    """Held-out examples per path, so that scoring costs at most as much as the shared weights did.

    Args:
        most: as many as there are, and as candidates are scored on.
        training: FLOPs of the shared weights.
        paths: to score.
        forward: FLOPs of a forward pass of one example.
    """
    return min(most, max(FEWEST_EXAMPLES, int(training // (paths * forward))))


def drawn_paths(space: Space, seed: int) -> list[Path]:
    """Paths that cost together what comparing costs: all, or ``MOST_SCORED`` that are drawn."""
    if space.size <= MOST_SCORED:
        return space.paths()
    drawn = Sampler(space, "uniform", seed, [])
    return [drawn.path(number) for number in range(MOST_SCORED)]


def beam(
    space: Space, score: Callable[[Path], Point | None], price: Callable[[Path], float] | None = None, seed: int = 0
) -> dict[Path, Point]:
    """Score all paths, or those that a beam comes by.

    The beam holds whole paths, so that each score is one that a path can have. It begins with the components alone
    (where only some paths may be chosen, also with a sample of these); at every block it also holds its paths with
    another component there, and the best ones go on. After the last block it begins again with the first, twice as wide
    where nothing new was found, until it has spent what ``MOST_SCORED`` drawn paths cost, so that its cost is known
    before.

    Args:
        space: the paths.
        score: of a path, whose loss counts; None where it has none.
        price: of scoring a path; None: all cost the same.
        seed: of the draws.

    Returns:
        Path → its score, in the order in which they were asked for.
    """
    found: dict[Path, Point | None] = {}
    cost = price or (lambda _: 1.0)
    left = math.fsum(map(cost, drawn_paths(space, seed)))

    def look(path: Path) -> None:
        nonlocal left
        if path not in found and cost(path) <= left:
            left -= cost(path)
            found[path] = score(path)

    def order(path: Path) -> tuple[float, Path]:
        value = found[path]
        return float("inf") if value is None else value.loss, path

    if space.size <= MOST_SCORED:
        found = {path: score(path) for path in space.paths()}
        return {path: value for path, value in found.items() if value is not None}
    width = max(2, MOST_SCORED // (2 * space.num_blocks * (space.num_components - 1)))
    listed = space.listed or []
    # flips alone may lead from no parent to what may be chosen
    held = [*space.alone, *listed[:: max(1, len(listed) // width)]]
    for path in held:
        look(path)
    while left > 0:
        before = len(found)
        for n in range(space.num_blocks):
            others = [flipped for path in held for flipped in space.flips(path, (n,))]
            for path in others:
                look(path)
            held = sorted({*held, *others} & found.keys(), key=order)[:width]
        if len(found) == before:
            if width >= len(found):
                break
            width *= 2
            held = sorted(found, key=order)[:width]
    return {path: value for path, value in found.items() if value is not None}
