"""What a search over candidates will cost, before it: the method itself, run on curves that are made up."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from manticore.search.beam import beam
from manticore.search.choice import PathMethod, Shared
from manticore.search.curves import MARKS, Curves, Point, SharedScores
from manticore.search.space import Path, Space, handovers


@dataclass(frozen=True)
class Forecast:
    """A course that a search may take."""

    units: float
    """Training of all candidates, and of weights that paths share."""
    scored: int
    """Times that a candidate is scored."""
    candidates: int
    shared: float = 0.0
    """Units of them that shared weights take."""
    compared: tuple[Path, ...] = ()
    """Paths that are scored with shared weights."""


class _Guessed(Curves):
    """Curves on which all candidates are equal, or each is far ahead of the next."""

    def error(self, a: Path, b: Path, mark: int) -> float:
        return 0.0


def forecast(method: PathMethod, space: Space, marks: list[int], seed: int, **options: object) -> list[Forecast]:
    """The cheapest and the dearest of the courses that were tried: candidates alike, or far apart in either order.

    Args:
        method: of searching.
        space: what it searches in.
        marks: where candidates are scored.
        seed: of what it draws.
        options: of the method.
    """
    courses = [_course(method, space, marks, seed, apart, options) for apart in (0.0, 1.0, -1.0)]
    courses.sort(key=lambda course: course.units)
    return [courses[0], courses[-1]]


def _course(
    method: PathMethod, space: Space, marks: list[int], seed: int, apart: float, options: dict[str, object]
) -> Forecast:
    curves = _Guessed(space, True, marks)
    order: dict[Path, int] = {}
    numbers, shared = itertools.count(), 0.0
    search = method(curves, seed, **options)
    try:
        while True:
            asked = next(search)
            if isinstance(asked, Shared):
                # where a race is short, parents are the best, which train in any case; else the worst
                guessed = beam(asked.space, _near if apart > 0 else _far, _loss)
                curves.shared, shared = SharedScores(guessed, 0), asked.units
                continue
            for path, mark in asked:
                place = order.setdefault(path, next(numbers))
                for each in {mark, *(m for m in marks if m < mark)}:
                    curves.add(path, Point(each, each, each, 0, apart * place, -apart * place, (0.0, 0.0)))
    except StopIteration:
        pass
    trained = {path: max(curve) for path, curve in curves.points.items()}
    scored = sum(len(curve) for curve in curves.points.values())
    compared = () if curves.shared is None else tuple(curves.shared.points)
    return Forecast(sum(trained.values()) / MARKS + shared, scored, len(trained), shared, compared)


def _near(path: Path) -> Point:
    return Point(0, 0, 0, 0, float(handovers(path)), 0.0)


def _far(path: Path) -> Point:
    return Point(0, 0, 0, 0, -float(handovers(path)), 0.0)


def _loss(point: Point) -> float:
    return point.loss
