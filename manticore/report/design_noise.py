"""How far seeds move a design's score, and what that allows to say of the best of many beside a baseline.

The variance of one training between seeds is pooled over all designs and baselines that were trained with several. The
best of N designs is ahead by luck oftener than one chosen beforehand, so the interval around a gap holds for all N
together (Bonferroni): P(no design that is no better than the baseline is beyond it) ≥ .95.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from manticore.experiments.intervals import t_quantile
from manticore.report.design_record import Study, Trained
from manticore.report.matches import Standing
from manticore.report.measure_words import words
from manticore.search.designs.scores import Goal

_MOST_FREEDOM = 400
"""Beyond it the t distribution is the normal one to three digits."""


@dataclass(frozen=True)
class Noise:
    deviation: float
    """Standard deviation of one training's score between seeds."""
    freedom: int
    """Its degrees of freedom."""


@dataclass(frozen=True)
class Gap:
    """A design beside a baseline, by one measure."""

    size: float
    """By how much the design's mean is better; negative where it is worse."""
    standing: Standing
    reach: float | None
    """Gaps up to it are noise; None where that was not measured."""


def noise(study: Study, goal: Goal) -> Noise | None:
    """Over everything that was trained with several seeds; None where nothing was, and for what is counted."""
    groups = [seeds(entry, goal) for entry in (*study.scored, *study.rivals)]
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom or words(goal.measure).exact:
        return None
    squares = math.fsum(statistics.variance(group) * (len(group) - 1) for group in groups)
    return Noise(math.sqrt(squares / freedom), freedom)


def seeds(entry: Trained, goal: Goal) -> list[float]:
    """An entry's score with each seed."""
    return [value for each in entry.repeats if (value := each.get(goal.measure)) is not None]


def gap(study: Study, goal: Goal, design: Trained, baseline: Trained) -> Gap:
    """What two means and the noise of seeds allow to say.

    Args:
        study: with all trials, of which the design is the best.
        goal: the measure.
        design: has a score.
        baseline: has one too.
    """
    size = baseline.point([goal])[0] - design.point([goal])[0]
    found = noise(study, goal)
    if words(goal.measure).exact:
        return Gap(size, _sure(size, 0.0), 0.0)
    if found is None:
        seen = Standing.SEEN_BETTER if size > 0 else Standing.SEEN_WORSE if size < 0 else Standing.SEEN_LEVEL
        return Gap(size, seen, None)
    trainings = [max(1, len(seeds(each, goal))) for each in (design, baseline)]
    reach = within(found, trainings, len(study.ranked))
    return Gap(size, _sure(size, reach), reach)


def within(found: Noise, trainings: Sequence[int], looked_at: int) -> float:
    """The gap of two means that noise alone exceeds with a probability of .05, in any of so many comparisons.

    Args:
        found: the noise.
        trainings: seeds that each mean is over.
        looked_at: designs that the best one was chosen among.
    """
    quantile = t_quantile(min(found.freedom, _MOST_FREEDOM), 1 - 0.05 / max(1, looked_at))
    return quantile * found.deviation * math.sqrt(sum(1 / number for number in trainings))


def _sure(size: float, reach: float) -> Standing:
    if abs(size) <= reach:
        return Standing.NOISE
    return Standing.BETTER if size > 0 else Standing.WORSE
