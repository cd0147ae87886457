"""Race: all candidates train side by side until one is clearly ahead on held-out data.

Nobody is dropped early: a winner can be last until just before it learns the task, so early standings are worse
than chance. Decisions fall at common marks only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from manticore.search.choice import Choice, Search
from manticore.search.curves import MARKS, Curves
from manticore.search.space import Path

GAP = 0.2
"""Nats per scored position that end a race."""
LATE = 8
"""From this mark on, two thirds of a unit, half a gap ends a race, and who is 1.5 gaps behind goes no further."""


def race(curves: Curves, seed: int, *, gap: float = GAP) -> Search:
    """All paths go on together until the leader is ``gap`` nats ahead of the second.

    From ⅔ of a unit on half of that is enough, and who is 1.5 gaps behind goes no further; after a whole unit the
    race is over. What learns in steps may not have begun to at ⅔ (``benchmarks/search_methods.py``).

    Args:
        curves: with the space.
        seed: not needed, nothing is drawn.
        gap: lead in held-out loss, in nats per scored position, that ends it before ⅔ of a unit; the lead must also
            be five paired standard errors.
    """
    paths = curves.space.paths()
    return (yield from among([*paths, *(path for path in curves.space.parents if path not in paths)], curves, gap=gap))


def among(paths: Sequence[Path], curves: Curves, *, gap: float = GAP) -> Search:
    """The race of some paths, two or more."""
    for mark in curves.marks:
        yield [(path, mark) for path in paths]
        allowed = [path for path in paths if curves.space.may_choose(path)]
        # a parent that may not be chosen is looked at, and ends no race between the others
        rivals = allowed if len(allowed) > 1 else paths
        first, second = sorted(rivals, key=lambda path: (curves.loss(path, mark), path))[:2]
        lead, error = curves.loss(second, mark) - curves.loss(first, mark), curves.error(first, second, mark)
        after = f"after {mark}/{MARKS} of a unit"
        if lead >= (gap if mark < LATE else gap / 2) and lead >= 5 * error:
            ahead = "all others had failed" if math.isinf(lead) else f"{lead:.2f} nats ahead of the second"
            return Choice(curves.best(allowed, mark), mark, f"{ahead} {after}")
        if mark >= LATE:
            paths = [path for path in paths if curves.loss(path, mark) <= curves.loss(first, mark) + 1.5 * gap]
    end = f"the race ended {after}"
    if lead <= 2 * error:
        why = f"{end} undecided: a lead of {lead:.2f} nats is within noise; a larger finetune_flops would tell more"
    else:
        why = f"{end} with a lead of {lead:.2f} nats"
    return Choice(curves.best(allowed, mark), mark, why)
