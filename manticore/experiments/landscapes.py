"""The learning curves of every path through a hybrid, so that what a search finds can be compared with what there was.

Expensive: components to the power of blocks fine-tunings. For benchmarks of searches on small hybrids, which replay
methods on recorded curves (:func:`replay`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.search.choice import Choice, PathMethod, Shared
from manticore.search.curves import MARKS, Curves, Point, SharedScores
from manticore.search.objective import Objective
from manticore.search.space import Path, Space, spelled
from manticore.training.scoring import score

DENSE = MARKS
"""Every mark up to a unit is scored, then every third."""


def marks(units: int) -> list[int]:
    """The marks of a landscape of so many units."""
    return [mark for mark in range(1, units * MARKS + 1) if mark <= DENSE or mark % 3 == 0]


@dataclass
class TestedObjective(Objective):
    """An objective that also scores the test split, at whole units, for the truth that no search sees."""

    __test__ = False  # no class of tests
    until: Sequence[int] = ()
    """The marks."""
    test_examples: int = 512

    @property
    def marks(self) -> list[int]:  # type: ignore[override]
        return list(self.until)

    def curves(self, told: Callable[[Path, Curves], None]) -> Curves:
        """The curves of all paths, to the last of the marks.

        Args:
            told: each path when it is trained.
        """
        found = Curves(self.space, self.task.higher_is_better, self.marks)
        for path in self.space.paths():
            for point in self.advance(path, self.marks[-1]):
                found.add(path, point)
            told(path, found)
        return found

    def measure(self, model: ManticorePreTrainedModel, mark: int) -> Point:
        point = super().measure(model, mark)
        if mark % MARKS:
            return point
        batch, examples = self.settings.batch_size, self.test_examples
        metrics, _ = score(model, self.task, "test", batch_size=batch, max_examples=examples)
        return replace(point, test=metrics[self.task.primary_metric])


@dataclass(frozen=True)
class Landscape:
    """The curves of one hybrid, for one seed."""

    space: Space
    higher_is_better: bool
    points: dict[Path, dict[int, Point]]
    """Without the losses of single examples, which are many; ``errors`` holds what they are needed for."""
    errors: dict[tuple[Path, Path], dict[int, float]]
    """Two paths → mark → the paired standard error of the difference of their losses, in nats."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What was measured: task, seed, unit in FLOPs, …"""

    @classmethod
    def of(cls, curves: Curves, **facts: Any) -> Landscape:
        """From curves whose points hold the losses of examples."""
        paths = sorted(curves.points)
        errors = {
            (a, b): {mark: round(curves.error(a, b, mark), 5) for mark in curves.points[a] if mark in curves.points[b]}
            for i, a in enumerate(paths)
            for b in paths[i + 1 :]
        }
        bare = {p: {m: replace(point, losses=()) for m, point in curve.items()} for p, curve in curves.points.items()}
        return cls(curves.space, curves.higher_is_better, bare, errors, facts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        columns = ("steps", "flops", "spent", "loss", "metric", "test", "seconds")
        return {
            **self.facts,
            "blocks": self.space.num_blocks,
            "components": self.space.num_components,
            "higher_is_better": self.higher_is_better,
            "curves": {
                spelled(path): {
                    "mark": list(curve),
                    **{c: [_round(getattr(p, c)) for p in curve.values()] for c in columns},
                }
                for path, curve in self.points.items()
            },
            "errors": {f"{spelled(a)},{spelled(b)}": list(found.values()) for (a, b), found in self.errors.items()},
        }

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Landscape:
        """From :meth:`to_dict`."""
        points = {}
        for name, columns in record["curves"].items():
            rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
            points[path_of(name)] = {row["mark"]: Point(**row) for row in rows}
        errors = {}
        for pair, values in record["errors"].items():
            a, b = map(path_of, pair.split(","))
            errors[a, b] = dict(zip(points[a], values))
        known = ("blocks", "components", "higher_is_better", "curves", "errors")
        facts = {name: value for name, value in record.items() if name not in known}
        space = Space(record["blocks"], record["components"])
        return cls(space, record["higher_is_better"], points, errors, facts)

    def truth(self, units: int) -> dict[Path, float]:
        """Path → its metric on the test split after so many units, signed so that higher is better."""
        sign = 1 if self.higher_is_better else -1
        found = {path: curve[units * MARKS].test for path, curve in self.points.items()}
        return {path: sign * value for path, value in found.items() if value is not None}


def _round(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def path_of(name: str) -> Path:
    """From ``0-1``."""
    return tuple(map(int, name.split("-")))


def regret(truth: Mapping[Path, float], path: Path) -> float:
    """How far a path is below the best one, as a share of the way from the best to the worst; 0 where all are equal."""
    best, worst = max(truth.values()), min(truth.values())
    return (best - truth[path]) / ((best - worst) or 1.0)


def mean_truth(truths: Sequence[Mapping[Path, float]]) -> dict[Path, float]:
    """The mean over seeds: what is true of a pair and a task, beyond one order of the data."""
    return {path: statistics.fmean(truth[path] for truth in truths) for path in truths[0]}


class _Recorded(Curves):
    """Curves whose points come from a landscape when they are asked for."""

    def __init__(self, landscape: Landscape, scored: Sequence[int]) -> None:
        super().__init__(landscape.space, landscape.higher_is_better, list(scored))
        self._landscape = landscape

    def error(self, a: Path, b: Path, mark: int) -> float:
        errors = self._landscape.errors
        return (errors.get((a, b)) or errors[b, a])[mark]

    def fetch(self, path: Path, mark: int) -> None:
        """What a search would have seen of a candidate that is trained to a mark."""
        for each, point in self._landscape.points[path].items():
            if each == mark or (each < mark and each in self.marks):
                self.add(path, point)


@dataclass(frozen=True)
class Replay:
    """What a method would have done."""

    choice: Choice
    cost: float
    """Units, scoring included."""
    training: dict[Path, int]
    """Candidate → FLOPs of its training."""


def replay(
    landscape: Landscape,
    method: PathMethod,
    seed: int,
    scored: Sequence[int],
    *,
    shared: Callable[[Shared], SharedScores] | None = None,
    **options: Any,
) -> Replay:
    """Run a method on recorded curves.

    Args:
        landscape: the curves.
        method: of searching.
        seed: of what it draws.
        scored: the marks where candidates are scored.
        shared: what paths score with shared weights, for methods that ask.
        options: of the method.
    """
    curves = _Recorded(landscape, scored)
    search = method(curves, seed, **options)
    try:
        while True:
            asked = next(search)
            if isinstance(asked, Shared):
                assert shared is not None, "a method that trains shared weights needs them"
                curves.shared = shared(asked)
                continue
            for path, mark in asked:
                curves.fetch(path, mark)
    except StopIteration as end:
        return Replay(end.value, curves.flops / landscape.facts["unit"], curves.training_flops)
