"""What a search over candidates will cost, before it: the method itself, run on curves that are made up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from manticore.search.beam import MOST_SCORED, beam, compared_examples, drawn_paths
from manticore.search.choice import PathMethod, Shared
from manticore.search.curves import MARKS, Curves, Point, SharedScores, steps_at
from manticore.search.sampling import Sampler, sampled
from manticore.search.space import Path, Space, handovers


@dataclass(frozen=True)
class Forecast:
    """A course that a search may take."""

    marks: Mapping[Path, tuple[int, ...]]
    """Candidate → the marks that it is scored at, in order; it trains to the last."""
    shared: Shared | None = None
    """What it asks of weights that paths share."""
    compared: tuple[Path, ...] = ()
    """Paths that are scored with them; where a beam looks for them, drawn ones that cost what it spends."""

    @property
    def units(self) -> float:
        """Training of all candidates, and of the shared weights."""
        shared = 0.0 if self.shared is None else self.shared.units
        return sum(marks[-1] for marks in self.marks.values()) / MARKS + shared

    @property
    def candidates(self) -> int:
        """How many train."""
        return len(self.marks)

    def flops(self, prices: Prices) -> float:
        """All that it takes: candidates, shared weights, scoring."""
        spent = sum(prices.candidate(path, marks) for path, marks in self.marks.items())
        return spent + (0 if self.shared is None else prices.sharing(self.shared, self.compared))


@dataclass(frozen=True)
class Prices:
    """What the parts of a search over candidates cost, as it counts them itself."""

    unit: int
    """FLOPs of a unit."""
    step: Callable[[Path], int]
    """FLOPs of a training step of a path."""
    forward: Callable[[Path], int]
    """FLOPs of a forward pass of one example through a candidate."""
    shared_forward: Callable[[Path], int]
    """The same with shared weights, in which low-rank updates are merged by then."""
    examples: int
    """Held-out examples that a candidate is scored on."""
    seed: int
    """Of the search, which draws the paths that train shared weights."""
    weights: Sequence[Sequence[float]]
    """The supernet's mixture weights, ``[N][K]``."""

    def candidate(self, path: Path, marks: Sequence[int]) -> int:
        """Training to the last of the marks, and scoring at each."""
        step = self.step(path)
        return steps_at(marks[-1], self.unit, step) * step + len(marks) * self.examples * self.forward(path)

    def sharing(self, asked: Shared, compared: Sequence[Path]) -> float:
        """Training shared weights on the paths that are drawn for them, and scoring paths with them.

        Args:
            asked: by the search.
            compared: the paths that are scored.

        Raises:
            ManticoreError: the training's share does not pay for a step.
        """
        space = asked.space
        sampler = Sampler(space, asked.sampling, self.seed, self.weights)
        training = sum(map(self.step, sampled(sampler, self.step, asked.units * self.unit)))
        dearest = max(map(self.shared_forward, space.alone))
        examples = compared_examples(self.examples, training, min(space.size, MOST_SCORED), dearest)
        return training + examples * sum(map(self.shared_forward, compared))


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
    numbers = itertools.count()
    shared: Shared | None = None
    compared: tuple[Path, ...] = ()
    search = method(curves, seed, **options)
    try:
        while True:
            asked = next(search)
            if isinstance(asked, Shared):
                # where a race is short, parents are the best, which train in any case; else the worst
                guessed = beam(asked.space, _near if apart > 0 else _far)
                curves.shared, shared, compared = SharedScores(guessed, 0), asked, tuple(drawn_paths(asked.space, seed))
                continue
            for path, mark in asked:
                place = order.setdefault(path, next(numbers))
                for each in {mark, *(m for m in marks if m < mark)}:
                    curves.add(path, Point(each, each, each, 0, apart * place, -apart * place, (0.0, 0.0)))
    except StopIteration:
        pass
    return Forecast({path: tuple(sorted(curve)) for path, curve in curves.points.items()}, shared, compared)


def _near(path: Path) -> Point:
    return Point(0, 0, 0, 0, float(handovers(path)), 0.0)


def _far(path: Path) -> Point:
    return Point(0, 0, 0, 0, -float(handovers(path)), 0.0)
