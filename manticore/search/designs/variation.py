"""How designs are varied: tournaments, crossover and mutation of their integers, and who is better than whom.

Source: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", 2002 (ranks of fronts, crowding,
constrained domination).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from manticore.search.designs.scores import Scores, dominates
from manticore.search.designs.space import Design

T = TypeVar("T")


def crossover(one: Design, other: Design, points: int, draws: random.Random) -> Design:
    """The integers of one design and of another in turns, changing at that many places drawn at random."""
    cuts = sorted(draws.sample(range(1, len(one)), min(points, len(one) - 1)))
    child: list[int] = []
    for turn, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(one)])):
        child += (one, other)[turn % 2][start:end]
    return tuple(child)


def mutate(design: Design, values: Sequence[Sequence[int]], rate: float, draws: random.Random) -> Design:
    """Each integer becomes, with probability ``rate``, another one of those that are legal there."""
    return tuple(
        draws.choice([each for each in legal if each != value] or [value]) if draws.random() < rate else value
        for value, legal in zip(design, values)
    )


def winner(ranked: Sequence[T], size: int, draws: random.Random) -> T:
    """Of so many drawn at random, the one that comes first."""
    return ranked[min(draws.sample(range(len(ranked)), min(size, len(ranked))))]


def ranked(designs: Iterable[Design], scores: Scores) -> list[Design]:
    """The distinct ones of several designs, from best to worst.

    First come those of the front, then the front of the others, and so on; within a front those with the most room
    around them. Where limits are exceeded, less in sum is better, whatever the goals say.
    """
    left = sorted(set(designs))
    over = {design: sum(max(0.0, each) for each in scores.excess(design)) for design in left}
    values = {design: scores.values(design) for design in left}

    def better(one: Design, other: Design) -> bool:
        return over[one] < over[other] or (over[one] == over[other] == 0 and dominates(values[one], values[other]))

    order: list[Design] = []
    while left:
        front = [one for one in left if not any(better(other, one) for other in left)]
        room = _crowding([values[design] for design in front])
        order += [design for _, design in sorted(zip([-each for each in room], front))]
        left = [design for design in left if design not in front]
    return order


def _crowding(values: Sequence[tuple[float, ...]]) -> list[float]:
    """How far the neighbours on either side are, in shares of the range, summed over the goals; the ends' are inf."""
    room = [0.0] * len(values)
    for goal in range(len(values[0])):
        order = sorted(range(len(values)), key=lambda index: values[index][goal])
        column = [values[index][goal] for index in order]
        span = column[-1] - column[0]
        if not 0 < span < math.inf:
            continue
        room[order[0]] = room[order[-1]] = math.inf
        for before, index, behind in zip(column, order[1:], column[2:]):
            room[index] += (behind - before) / span
    return room
