"""The default. ``benchmarks/search_methods.py`` measures which method suits a space: so far in two blocks only."""

from __future__ import annotations

from manticore.search.blockwise import blockwise
from manticore.search.choice import Search
from manticore.search.curves import Curves
from manticore.search.race import GAP, race

RACED = 4
"""Up to so many paths are raced."""


def auto(curves: Curves, seed: int, *, gap: float = GAP, max_handovers: int | None = None) -> Search:
    """Race up to four paths; of more, start from the best parent and go block by block.

    Args:
        curves: with the space.
        seed: not needed, nothing is drawn.
        gap: as :func:`~manticore.search.race.race` has it.
        max_handovers: as :func:`~manticore.search.blockwise.blockwise` has it.
    """
    if curves.space.size <= RACED and max_handovers is None:
        return (yield from race(curves, seed, gap=gap))
    return (yield from blockwise(curves, seed, max_handovers=max_handovers))
