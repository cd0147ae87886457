"""The cheapest and the costliest path through a supernet: which one a search will find is not known before it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence

from manticore.plan.cases import Case

_TRIED = 64
"""Up to so many paths, each is measured."""

Path = list[int]


def path_ends(
    measure: Callable[[Path], Case], boundaries: Sequence[Sequence[int]], widths: Sequence[int], spaces: Sequence[int]
) -> list[Path]:
    """The paths with the fewest and with the most FLOPs per step.

    Of more than 64 paths, they are those by the sums of what blocks cost in the components alone, and of linear
    hand-overs.

    Args:
        measure: gives the case of a path.
        boundaries: per component the first layer of each block, and the number of layers.
        widths: of the components.
        spaces: per component its feature space; within one, nothing is paid for a hand-over.
    """
    components, blocks = range(len(widths)), len(boundaries[0]) - 1
    if len(widths) ** blocks <= _TRIED:
        every = [list(path) for path in itertools.product(components, repeat=blocks)]
        every.sort(key=lambda path: measure(path).flops)
        return [every[0], every[-1]]
    costs, ends, tokens = [], [], 0
    for k in components:
        case = measure([k] * blocks)
        layers = [part.piece.forward_flops + part.piece.backward_flops for part in case.parts if part.unit]
        costs.append([sum(layers[a:b]) for a, b in itertools.pairwise(boundaries[k])])
        ends.append(case.flops - sum(layers))
        tokens = case.tokens
    found = []
    for better in (operator.lt, operator.gt):
        best: list[tuple[float, Path]] = [(costs[k][0], [k]) for k in components]
        for n in range(1, blocks):
            best = [_next(best, k, costs[k][n], tokens, widths, spaces, better) for k in components]
        total = [(cost + ends[path[-1]], path) for cost, path in best]
        found.append((min if better is operator.lt else max)(total)[1])
    return found


def _next(
    best: list[tuple[float, Path]],
    k: int,
    cost: float,
    tokens: int,
    widths: Sequence[int],
    spaces: Sequence[int],
    better: Callable[[float, float], bool],
) -> tuple[float, Path]:
    """The best way to end one block later in component `k`."""
    chosen: tuple[float, Path] | None = None
    for before, path in best:
        hand_over = 0 if spaces[path[-1]] == spaces[k] else 6 * tokens * widths[path[-1]] * widths[k]
        total = before + hand_over + cost
        if chosen is None or better(total, chosen[0]):
            chosen = total, [*path, k]
    assert chosen is not None
    return chosen
