"""Hypervolume: how much of the space of objectives a set of designs dominates, up to a reference point.

HV(P, r) = volume of the union over p in P of the boxes [p_1, r_1] × … × [p_M, r_M]; every objective is minimised, and
what is not better than r in all of them adds nothing. Exact, by exclusive volumes (While, Bradstreet and Barone,
"A Fast Way of Calculating Exact Hypervolumes", 2012): the volume of p and the rest is that of p's own box, less what of
it the rest dominates, plus the rest's. M objectives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain

Point = Sequence[float]
"""One number per objective, the smaller the better."""


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The volume that the points dominate, in the product of the objectives' units.

    Raises:
        ValueError: a point of another length than the reference.
    """
    found = [tuple(point) for point in points]
    if any(len(point) != len(reference) for point in found):
        raise ValueError(f"points need {len(reference)} objectives, as the reference has")
    inside = {point for point in found if all(p < r for p, r in zip(point, reference))}
    return _volume(front_of(inside), tuple(reference))


def front_of(points: Iterable[Point]) -> list[tuple[float, ...]]:
    """The distinct points that no other dominates, the best by the first objective first."""
    kept: list[tuple[float, ...]] = []
    # what dominates a point stands before it in this order
    for point in sorted({tuple(point) for point in points}):
        if not any(all(a <= b for a, b in zip(other, point)) for other in kept):
            kept.append(point)
    return kept


def reference_of(points: Iterable[Point]) -> tuple[float, ...]:
    """The worst value of each objective among the points, those that are not finite left out.

    Raises:
        ValueError: no point is finite.
    """
    finite = [point for point in points if all(map(math.isfinite, point))]
    if not finite:
        raise ValueError("no point has finite values in all objectives")
    return tuple(max(values) for values in zip(*finite))


def history(batches: Iterable[Iterable[Point]], reference: Point) -> list[float]:
    """The hypervolume of everything seen so far, after each batch; it never falls."""
    front: list[tuple[float, ...]] = []
    found = []
    for batch in batches:
        front = front_of(chain(front, batch))
        found.append(hypervolume(front, reference))
    return found


def _volume(front: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    if not front:
        return 0.0
    if len(reference) == 1:
        return reference[0] - front[0][0]
    if len(reference) == 2:
        # by the first objective upwards the second falls: a staircase
        ceilings = (reference[1], *(point[1] for point in front))
        return sum((reference[0] - x) * (above - y) for (x, y), above in zip(front, ceilings))
    # the worst of the last objective first, so that what is left is cut off at its height and spans few boxes
    ordered = sorted(front, key=lambda point: -point[-1])
    return math.fsum(_exclusive(point, ordered[i + 1 :], reference) for i, point in enumerate(ordered))


def _exclusive(point: tuple[float, ...], others: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """The volume that only ``point`` dominates."""
    own = math.prod(r - p for p, r in zip(point, reference))
    # after the sort no other reaches below the point in the last objective: there the shared boxes are as high as it
    shared = front_of(tuple(map(max, point[:-1], other[:-1])) for other in others)
    return own - (reference[-1] - point[-1]) * _volume(shared, reference[:-1])
