"""Learning curves: what each candidate scored on held-out data, at marks of equal compute.

A **unit** is the training FLOPs of fine-tuning one path once; mark m stands after m twelfths of it, for every
candidate alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from manticore.search.space import Path, Space

MARKS = 12
"""Marks per unit."""
UNTRAINED = 0
"""The mark of a candidate as it is."""
EVALUATION_SHARE = 0.1
"""Scoring may cost this share of the training between two marks; else there are fewer marks."""
_SPACINGS = (1, 2, 4)


def spacing(scoring: float, unit: float) -> list[int]:
    """The marks of a unit: as dense as scoring costs at most a tenth of the training between two of them.

    Args:
        scoring: FLOPs of scoring a candidate once.
        unit: FLOPs of a unit.
    """
    afforded = [gap for gap in _SPACINGS if scoring <= EVALUATION_SHARE * unit * gap / MARKS]
    gap = afforded[0] if afforded else _SPACINGS[-1]
    return list(range(gap, MARKS + 1, gap))


def steps_at(mark: int, unit: int, step: int) -> int:
    """Optimizer steps that a candidate has made at a mark: all have spent the same, so fast ones have made more.

    Untrained it has made none; at every other mark it has made a step at least.

    Args:
        mark: in twelfths of a unit.
        unit: FLOPs of a unit.
        step: FLOPs of a step of the candidate.
    """
    return max(1, mark * unit // (MARKS * step)) if mark else 0


def trained_for(mark: int) -> str:
    """How long a candidate has trained at a mark, in words."""
    return f"after {mark}/{MARKS} of a unit of training" if mark else "untrained"


@dataclass(frozen=True)
class Point:
    """A candidate at a mark."""

    mark: int
    steps: int
    """Optimizer steps so far."""
    flops: int
    """Training FLOPs so far."""
    spent: int
    """FLOPs of the evaluation at this mark."""
    loss: float
    """Mean of ``losses``."""
    metric: float
    """The task's primary metric on the same examples."""
    losses: tuple[float, ...] = ()
    """Of each held-out example, in nats per scored position; rounded, so that they are read back as they were."""
    seconds: float = 0.0
    """Training time so far."""
    test: float | None = None
    """The metric on the test split, where landscapes are measured; no search looks at it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "losses": list(self.losses)}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Point:
        """From :meth:`to_dict`."""
        return cls(**{**values, "losses": tuple(values["losses"])})


@dataclass(frozen=True)
class SharedScores:
    """What paths scored with weights that they share, and what these have cost."""

    points: Mapping[Path, Point]
    """Path → its score; all of mark 0."""
    flops: int
    """Of the training of the shared weights."""
    steps: int = 0
    """Of that training."""
    failed: str | None = None
    """Why there are no scores, if there are none."""
    seconds: float = field(default=0.0, compare=False)
    """Of that training."""


@dataclass
class Curves:
    """The points of all candidates so far, and what became of those that could not go on."""

    space: Space
    higher_is_better: bool
    marks: Sequence[int]
    """Where candidates are scored, in order; the last is the cap."""
    points: dict[Path, dict[int, Point]] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    """Candidate → why: it diverged, or ran out of memory."""
    shared: SharedScores | None = None
    """What a search that trains shared weights has found with them."""

    def add(self, path: Path, point: Point) -> None:
        self.points.setdefault(path, {})[point.mark] = point

    def loss(self, path: Path, mark: int) -> float:
        """Held-out loss at a mark; infinite where a candidate failed before it."""
        point = self.points.get(path, {}).get(mark)
        return math.inf if point is None else point.loss

    def score(self, path: Path, mark: int) -> float:
        """The task's metric, signed so that higher is better; minus infinity where a candidate failed."""
        point = self.points.get(path, {}).get(mark)
        if point is None or math.isnan(point.metric):
            return -math.inf
        return point.metric if self.higher_is_better else -point.metric

    def error(self, a: Path, b: Path, mark: int) -> float:
        """The standard error of the difference of two candidates' losses, paired example by example, in nats.

        0 where one of them failed before: nothing about that is by chance.
        """
        if not all(mark in self.points.get(path, {}) for path in (a, b)):
            return 0.0
        ours, theirs = (self.points[path][mark].losses for path in (a, b))
        return float(np.std(np.subtract(ours, theirs), ddof=1) / math.sqrt(len(ours))) if len(ours) > 1 else math.inf

    def best(self, paths: Sequence[Path], mark: int) -> Path:
        """The candidate with the best metric at a mark, then the best loss; what is no better than a parent is a tie.

        A tie goes to the parent, which costs no projector: a lead in loss of less than two paired standard errors, and
        the same metric, is a tie.
        """
        order = sorted(paths, key=lambda path: (-self.score(path, mark), self.loss(path, mark), path))
        top = order[0]
        parents = [path for path in order if path in self.space.parents]
        if not parents or top in parents or not math.isfinite(self.loss(parents[0], mark)):
            return top
        lead = self.loss(parents[0], mark) - self.loss(top, mark)
        surely = lead > 2 * self.error(top, parents[0], mark)
        return top if surely or self.score(top, mark) > self.score(parents[0], mark) else parents[0]

    @property
    def training_flops(self) -> dict[Path, int]:
        """Candidate → what its training has cost so far."""
        return {path: max(point.flops for point in curve.values()) for path, curve in self.points.items() if curve}

    @property
    def evaluation_flops(self) -> int:
        """What all scoring has cost."""
        shared = [] if self.shared is None else self.shared.points.values()
        scored = [point for curve in self.points.values() for point in curve.values()]
        return sum(point.spent for point in [*scored, *shared])

    @property
    def flops(self) -> int:
        """All that was spent: candidates, shared weights, scoring."""
        shared = 0 if self.shared is None else self.shared.flops
        return sum(self.training_flops.values()) + shared + self.evaluation_flops
