"""The budgets of a comparison, and what passing them costs. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manticore.errors import ManticoreError
from manticore.option_types import LARGEST_SHARE

UNTRAINED = "untrained"
FINE_TUNING = "fine-tuning alone"
EVERYTHING = "everything the hybrid cost"


@dataclass(frozen=True)
class Budget:
    """Training FLOPs that every model may spend."""

    name: str
    flops: int
    share: float | None = None
    """Of the fine-tuning budget, what was spent before left out."""
    with_spent: bool = False
    """Whether what was spent on a model before its fine-tuning counts."""


def budgets_of(given: Sequence[float] | None, fine_tuning: int, spent: int) -> list[Budget]:
    """The budgets of a table, smallest first; where something was spent before, each once more with that on top.

    Args:
        given: shares of the fine-tuning budget, or FLOPs; None: all of it.
        fine_tuning: FLOPs.
        spent: the most that any model has cost before.

    Raises:
        ManticoreError: two of them are the same.
    """
    amounts = [_flops(each, fine_tuning) for each in given or [1]]
    for flops in amounts:
        if amounts.count(flops) > 1:
            raise ManticoreError(
                f"compare: two budgets are of {flops:.4g} FLOPs (the fine-tuning budget is {fine_tuning:.4g}). "
                "Fix: leave one of them out"
            )
    alone = [Budget(_name(flops, fine_tuning), flops, flops / fine_tuning) for flops in sorted(amounts)]
    if not spent:
        return alone
    more = [
        Budget(
            EVERYTHING if b.flops == fine_tuning else f"everything, with {_part(b.flops, fine_tuning)}",
            b.flops + spent,
            b.share,
            True,
        )
        for b in alone
    ]
    return [*alone, *more]


def _flops(budget: float, fine_tuning: int) -> int:
    """Of a share, or FLOPs as they are; what is above 0 stays there, and is refused where it pays for no step."""
    whole = budget if budget > LARGEST_SHARE else budget * fine_tuning
    return fine_tuning if budget == 1 else max(int(budget > 0), int(whole))


def _name(flops: int, fine_tuning: int) -> str:
    if flops == fine_tuning:
        return FINE_TUNING
    return _part(flops, fine_tuning) if flops else UNTRAINED


def _part(flops: int, fine_tuning: int) -> str:
    return f"{float(f'{flops / fine_tuning:.3g}'):g} × fine-tuning" if flops else "no fine-tuning"


def most_flops(marks: Sequence[float], *, rates: int, seeds: int, one_run: bool) -> float:
    """The most training FLOPs that one model can take.

    The first seed tries every learning rate at every budget, others the best ones of each budget: where these differ,
    as many runs are made.

    Args:
        marks: FLOPs that the model is scored at.
        rates: number of learning rates.
        seeds: number of seeds.
        one_run: whether a run passes all budgets.
    """
    if not one_run:
        return sum(marks) * (rates + seeds - 1)
    dearest = sorted(marks, reverse=True)
    return dearest[0] * rates + sum(dearest[:rates]) * (seeds - 1)
