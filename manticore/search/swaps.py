"""Swaps: each block of the best parent with another component, one at a time and untrained; the choice adds them up.

What Puzzletron and hybrid model factories do with layers of a large model, whose candidates nobody could fine-tune one
by one: a score per block and component, and the best sum of them within the limits, exactly
(:func:`manticore.search.constraints.best_by_table`). It costs forward passes alone. That losses add up is an
assumption: the path that is chosen is scored as a whole, and ``reason`` says both. It needs components that fit each
other before any training: a parent and its twin, or aligned ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

from manticore.search.choice import Choice, Search
from manticore.search.curves import UNTRAINED, Curves
from manticore.search.space import Path


def swaps(curves: Curves, seed: int) -> Search:
    """Score components alone and all single exchanges in the best of the parents; choose the best sum that may be.

    Args:
        curves: with the space.
        seed: not needed, nothing is drawn.
    """
    space = curves.space
    yield [(path, UNTRAINED) for path in space.alone]
    start = min(space.parents, key=lambda path: (curves.loss(path, UNTRAINED), path))
    # single exchanges need not keep the limits: it is their sum that has to
    every = replace(space, allowed=None)
    exchanged = [path for n in range(space.num_blocks) for path in every.flips(start, (n,))]
    yield [(path, UNTRAINED) for path in exchanged]

    def rise(path: Path) -> float:
        """Of the held-out loss over the parent's, in nats."""
        loss = curves.loss(path, UNTRAINED)
        return loss - curves.loss(start, UNTRAINED) if math.isfinite(loss) else math.inf

    rises = [
        [rise((*start[:n], k, *start[n + 1 :])) if k != start[n] else 0.0 for k in range(space.num_components)]
        for n in range(space.num_blocks)
    ]
    found = space.best([[-each for each in row] for row in rises])
    yield [(found, UNTRAINED)]
    if space.may_choose(start) and curves.loss(start, UNTRAINED) <= curves.loss(found, UNTRAINED):
        return Choice(start, UNTRAINED, f"the best of {len(exchanged)} exchanges of one block, none of which helps")
    changed = [n for n, (old, new) in enumerate(zip(start, found)) if old != new]
    added = math.fsum(rises[n][found[n]] for n in changed)
    why = (
        f"{len(changed)} of {space.num_blocks} blocks exchanged, by {len(exchanged)} exchanges of one block: untrained "
        f"they change the held-out loss by {added:+.4f} nats if added up, by {rise(found):+.4f} together"
    )
    return Choice(found, UNTRAINED, why)
