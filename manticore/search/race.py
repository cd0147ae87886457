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
"""From this mark on, two thirds of a unit, who is 1.5 gaps behind leaves a race."""


def race(curves: Curves, seed: int, *, gap: float = GAP) -> Search:
    """All paths go on together until the leader is ``gap`` nats ahead of the second, a whole unit at most.

    From ⅔ of a unit on, who is 1.5 gaps behind leaves: what learns in steps may not have begun to at ⅔, and what is
    farther behind than that does not catch up (``benchmarks/search_methods.py``).

    Args:
        curves: with the space.
        seed: not needed, nothing is drawn.
        gap: lead in held-out loss, in nats per scored position, that ends it; the lead must also be five paired
            standard errors.
    """
    paths = curves.space.paths()
    return (yield from among([*paths, *(path for path in curves.space.parents if path not in paths)], curves, gap=gap))


def among(paths: Sequence[Path], curves: Curves, *, gap: float = GAP) -> Search:
    """The race of some paths; a single one trains to the end."""
    if len(paths) == 1:
        # the only finalist of a search with one parent
        mark = curves.marks[-1]
        yield [(path, mark) for path in paths]
        return Choice(paths[0], mark, f"nothing else was to be trained, {mark}/{MARKS} of a unit")
    for mark in curves.marks:
        yield [(path, mark) for path in paths]
        allowed = [path for path in paths if curves.space.may_choose(path)]
        # a parent that may not be chosen is looked at, and ends no race between the others
        rivals = allowed if len(allowed) > 1 else paths
        first, second = sorted(rivals, key=lambda path: (curves.loss(path, mark), path))[:2]
        lead, after = curves.loss(second, mark) - curves.loss(first, mark), f"after {mark}/{MARKS} of a unit"
        if _surely_behind(curves, second, first, mark, gap):
            ahead = "all others had failed" if math.isinf(lead) else f"{lead:.2f} nats ahead of the second"
            return Choice(curves.best(allowed, mark), mark, f"{ahead} {after}")
        if mark >= LATE:
            paths = [path for path in paths if not _surely_behind(curves, path, first, mark, 1.5 * gap)]
    if lead <= 2 * curves.error(first, second, mark):
        why = f"undecided: a lead of {lead:.2f} nats is within noise; a larger finetune_flops would tell more"
    else:
        why = f"with a lead of {lead:.2f} nats"
    return Choice(curves.best(allowed, mark), mark, f"the race ended {after} {why}")


def _surely_behind(curves: Curves, path: Path, leader: Path, mark: int, nats: float) -> bool:
    behind = curves.loss(path, mark) - curves.loss(leader, mark)
    return behind >= nats and behind >= 5 * curves.error(path, leader, mark)
