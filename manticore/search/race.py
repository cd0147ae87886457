"""Race: all candidates train side by side until one is clearly ahead on held-out data.

Nobody is dropped earlier: a winner can be last until just before it learns the task, so early standings are worse
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
CAP = 8
"""The last mark: two thirds of a unit."""


def race(curves: Curves, seed: int, *, gap: float = GAP) -> Search:
    """All paths go on together; ends when the leader is ``gap`` nats ahead of the second, at the latest at ⅔ unit.

    Args:
        curves: with the space.
        seed: not needed, nothing is drawn.
        gap: lead in held-out loss, in nats per scored position, that ends it; the lead must also be five paired
            standard errors.
    """
    paths = curves.space.paths()
    return (yield from among([*paths, *(path for path in curves.space.parents if path not in paths)], curves, gap=gap))


def among(paths: Sequence[Path], curves: Curves, *, gap: float = GAP) -> Search:
    """The race of some paths, two or more."""
    allowed = [path for path in paths if curves.space.may_choose(path)]
    # a parent that may not be chosen is looked at, and ends no race between the others
    rivals = allowed if len(allowed) > 1 else paths
    marks = [mark for mark in curves.marks if mark <= CAP]
    mark, why = marks[-1], f"the race went to its end, {marks[-1]}/{MARKS} of a unit"
    for mark in marks:
        yield [(path, mark) for path in paths]
        first, second = sorted(rivals, key=lambda path: (curves.loss(path, mark), path))[:2]
        lead = curves.loss(second, mark) - curves.loss(first, mark)
        if lead >= gap and lead >= 5 * curves.error(first, second, mark):
            after = f"after {mark}/{MARKS} of a unit"
            why = (
                f"all others had failed {after}" if math.isinf(lead) else f"{lead:.2f} nats ahead of the second {after}"
            )
            break
    return Choice(curves.best(allowed, mark), mark, why)
