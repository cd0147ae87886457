"""What a search of designs has to beat: designs drawn at random, and all of them."""

from __future__ import annotations

import random
from collections.abc import Collection

from manticore.errors import ManticoreError
from manticore.option_types import Count
from manticore.search.designs.method import Asking
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design, DesignSpace
from manticore.seeding import derive_seed

ENUMERABLE = 4096
"""Spaces up to this size are listed whole where it helps."""
_DRAWS = 200


def random_designs(scores: Scores, seed: int, trials: int, *, batch: Count | None = None) -> Asking:
    """Distinct designs drawn at random, the fair baseline.

    Args:
        scores: with the space.
        seed: of the draws.
        trials: how many are drawn.
        batch: designs that may be scored at the same time; None is all of them, since no draw depends on a score.

    Raises:
        ManticoreError: more trials than designs.
    """
    refuse_too_many(trials, scores.space)
    draws = random.Random(derive_seed(seed, "design/random"))
    drawn: dict[Design, None] = {}
    while len(drawn) < trials:
        asked: list[Design] = []
        for _ in range(min(batch or trials, trials - len(drawn))):
            new = unasked(scores.space, drawn, draws)
            if new is None:
                break
            drawn[new] = None
            asked.append(new)
        if not asked:
            return
        yield asked


def exhaustive(scores: Scores, seed: int, trials: int) -> Asking:
    """All designs, in order.

    Args:
        scores: with the space.
        seed: not needed, nothing is drawn.
        trials: no fewer than there are designs.

    Raises:
        ManticoreError: fewer trials than designs.
    """
    if trials < scores.space.size:
        raise ManticoreError(
            f"exhaustive: {trials:,} trials for a space of {scores.space.size:,} designs. "
            f"Fix: trials={scores.space.size}, or method random"
        )
    yield list(scores.space.designs())


def refuse_too_many(trials: int, space: DesignSpace) -> None:
    """Raises ManticoreError where a space has not as many designs as trials are asked for."""
    if trials > space.size:
        raise ManticoreError(
            f"design: {trials:,} trials, but the space has {space.size:,} design{'s' if space.size > 1 else ''}. "
            f"Fix: trials={space.size} with method exhaustive, or a larger space"
        )


def unasked(space: DesignSpace, asked: Collection[Design], draws: random.Random) -> Design | None:
    """A design that was not asked for yet, all of them equally likely; None where none is left.

    In a space too large to be listed, None after many draws that were all known.
    """
    for _ in range(_DRAWS):
        design = space.repaired(tuple(draws.choice(values) for values in space.values), draws)
        if design not in asked:
            return design
    if space.size > ENUMERABLE:
        return None
    left = [design for design in space.designs() if design not in asked]
    return draws.choice(left) if left else None
