"""One-shot: shared weights, trained on one sampled path per step, say which paths are worth training for real.

What shared weights score is a filter and no verdict: they erase what distinguishes paths most, how fast they learn. So
the best few by these scores race each other and the parents, each from the weights that the search began with.
"""

from __future__ import annotations

from manticore.errors import ManticoreError
from manticore.registry import did_you_mean
from manticore.search.choice import Choice, Search, Shared
from manticore.search.curves import MARKS, Curves
from manticore.search.race import GAP, among
from manticore.search.sampling import SAMPLINGS

DECIDING = 6
"""Each segment is to train as long as a candidate would for half a unit, in twelfths."""
TOP = 3
"""Paths that are trained for real, beside the parents."""


def oneshot(
    curves: Curves,
    seed: int,
    *,
    sampling: str = "uniform",
    shared_units: float | None = None,
    top: int = TOP,
    gap: float = GAP,
) -> Search:
    """Score paths with shared weights, all or those of a beam; the best few and the parents race.

    Args:
        curves: with the space.
        seed: of the draws, which the shared training makes from the study's.
        sampling: ``"uniform"``, ``"weighted"`` or ``"layouts"`` (:mod:`manticore.search.sampling`).
        shared_units: what the shared weights' training costs; None: half a unit for each component, so that a segment
            trains as long as it would in a candidate for half a unit.
        top: paths that train for real, beside the parents.
        gap: as :func:`~manticore.search.race.race` has it.
    """
    if sampling not in SAMPLINGS:
        raise ManticoreError(f"search: unknown sampling {sampling!r}{did_you_mean(sampling, list(SAMPLINGS))}")
    space = curves.space
    units = space.num_components * DECIDING / MARKS if shared_units is None else shared_units
    yield Shared(space, units, sampling)
    assert curves.shared is not None
    found = curves.shared.points
    order = sorted((path for path in found if space.may_choose(path)), key=lambda path: (found[path].loss, path))
    if not order:
        # parents race in any case; where none of them may be chosen, something else has to
        order = [] if space.allowed is None else sorted({space.nearest(path) for path in space.parents})
    finalists = [*order[:top], *(path for path in space.parents if path not in order[:top])]
    choice = yield from among(finalists, curves, gap=gap)
    if curves.shared.failed is not None:
        why = f"{choice.reason}; no path was compared by shared weights ({curves.shared.failed})"
        return Choice(choice.path, choice.mark, why)
    place = order.index(choice.path) + 1 if choice.path in order else 0
    said = f"number {place} of {len(order)}" if place else "not among those"
    return Choice(choice.path, choice.mark, f"{choice.reason}; with shared weights it was {said} that were scored")
