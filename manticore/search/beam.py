"""The paths that shared weights are asked about: all, or a beam through the blocks where they are too many."""

from __future__ import annotations

from collections.abc import Callable

from manticore.search.curves import Point
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


def beam(space: Space, score: Callable[[Path], Point | None]) -> dict[Path, Point]:
    """Score all paths, or those that a beam comes by.

    The beam holds whole paths, so that each score is one that a path can have. It begins with the components alone
    (where only some paths may be chosen, also with a sample of these); at every block it also holds its paths with
    another component there, and the best ones go on. After the last block it begins again with the first, twice as wide
    where nothing new was found, until ``MOST_SCORED`` paths are scored, so that its cost is known before.

    Args:
        space: the paths.
        score: of a path, whose loss counts; None where it has none.

    Returns:
        Path → its score, in the order in which they were asked for.
    """
    found: dict[Path, Point | None] = {}

    def look(path: Path) -> None:
        if path not in found and len(found) < MOST_SCORED:
            found[path] = score(path)

    def order(path: Path) -> tuple[float, Path]:
        value = found[path]
        return float("inf") if value is None else value.loss, path

    if space.size <= MOST_SCORED:
        for path in space.paths():
            look(path)
        return {path: value for path, value in found.items() if value is not None}
    width = max(2, MOST_SCORED // (2 * space.num_blocks * (space.num_components - 1)))
    listed = space.listed or []
    # flips alone may lead from no parent to what may be chosen
    held = [*space.parents, *listed[:: max(1, len(listed) // width)]]
    for path in held:
        look(path)
    while len(found) < MOST_SCORED:
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
