"""What a study's generations have brought: hypervolume, and who stands in the population, one after the other.

The reference point of the hypervolume is the worst of the first generation in each objective; axes are scaled by
Transformer++ where it is a baseline. Batches of few designs are taken together, so that shares are of something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

from manticore.experiments.hypervolume import history, hypervolume, reference_of
from manticore.experiments.motifs import Motifs, motifs
from manticore.report.design_record import Baseline, Study, Trial
from manticore.report.measure_words import name

_SCALE_OF = "transformer"
"""The baseline whose values are the units of the axes, by the beginning of its name."""
_MOST_STEPS = 24
"""Populations in one picture."""
_MOST_VOLUMES = 120
_LEAST_FRONT = 5


@dataclass(frozen=True)
class Growth:
    """Hypervolume after each generation."""

    everything: list[float]
    """Of all designs so far; it never falls."""
    populations: list[float] | None
    """Of each population alone; None where there are no populations."""
    reference: tuple[float, ...]
    """In the objectives' own units and directions."""
    scaled_by: str
    """The baseline whose values are the units; empty: the objectives' own."""
    unit: str
    """``generation`` or ``batch``,"""
    places: list[int]
    """and which of them each volume is after, from 0."""


@dataclass(frozen=True)
class Populations:
    """Motifs of the population, over the search."""

    steps: list[Motifs]
    names: list[str]
    """Of the steps: ``3`` or ``4–7``."""
    unit: str


def growth(study: Study) -> Growth | None:
    """None where there is one objective, or the first generation has no scores."""
    goals, found = study.goals, study.batches
    first = [trial.point(goals) for trial in (found[0] if found else ()) if trial.is_scored(goals)]
    if len(goals) < 2 or not first:
        return None
    scale, units = _units(study)
    reference = tuple(value / one for value, one in zip(reference_of(first), units))
    # of many batches of one design each, neighbours do not differ visibly
    spans = _spans(len(found), _MOST_VOLUMES)
    points = [
        [
            tuple(value / one for value, one in zip(trial.point(goals), units))
            for trial in chain(*(found[place] for place in span))
            if trial.is_scored(goals) and study.allows(trial)
        ]
        for span in spans
    ]
    alone = [hypervolume(batch, reference) for batch in points] if _is_population(study) else None
    own = [value * one * (-1 if goal.maximise else 1) for value, one, goal in zip(reference, units, goals)]
    scaled, places = scale.name if scale else "", [span[-1] for span in spans]
    return Growth(history(points, reference), alone, tuple(own), scaled, unit(study), places)


def populations(study: Study) -> Populations:
    """The motifs of each generation, of few designs at a time taken together."""
    found = study.batches
    spans = _spans(len(found), _MOST_STEPS)
    names = [str(span[0]) if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in spans]
    steps = [motifs(trial.entries for place in span for trial in found[place]) for span in spans]
    return Populations(steps, names, unit(study))


def unit(study: Study) -> str:
    """What the search counts in."""
    return "generation" if _is_population(study) else "batch"


def best_group(study: Study) -> tuple[str, list[Trial]]:
    """Those that motifs are looked for among, and what they are: a front of several, else the best quarter."""
    front = [study.by_design[design] for design in study.front]
    if len(study.goals) > 1 and len(front) >= _LEAST_FRONT:
        return "the front", front
    return f"the best by {name(study.goals[0].measure)}", study.ranked[: max(3, len(study.ranked) // 4)]


def _is_population(study: Study) -> bool:
    """Whether the batches are populations: then some design stands in two of them, or has parents."""
    listed = list(chain(*study.generations))
    return len(set(listed)) < len(listed) or any(trial.parents for trial in study.trials)


def _units(study: Study) -> tuple[Baseline | None, list[float]]:
    for baseline in study.rivals:
        values = [abs(value) for value in baseline.point(study.goals)]
        if baseline.name.startswith(_SCALE_OF) and all(values):
            return baseline, values
    return None, [1.0] * len(study.goals)


def _spans(total: int, most: int) -> list[range]:
    """``range(total)`` in at most so many runs of one length, of which the last may be shorter."""
    width = math.ceil(total / most)
    return [range(first, min(first + width, total)) for first in range(0, total, width)]
