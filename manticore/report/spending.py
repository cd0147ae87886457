"""How near the rows of a comparison came to their budget, and what may therefore be said of it.

Training takes whole steps, so a model whose step is dear stops short of a small budget. That is no fault of the run,
but it is no equal compute either: every row more than 5 % away from its budget shows its share.
"""

from __future__ import annotations

from collections.abc import Iterable

from manticore.stages.compare import MISMATCH_LIMIT, CompareRecord, Row


def shares(compare: CompareRecord, row: Row) -> tuple[float, ...]:
    """Training FLOPs of each seed over the row's budget; empty where the record does not say."""
    budget = compare.budgets[row.budget].flops if row.budget < len(compare.budgets) else None
    return tuple(seed.flops / budget for seed in row.seeds if seed.flops is not None) if budget else ()


def farthest(compare: CompareRecord, row: Row) -> float | None:
    """The share that is farthest from 1; None where the record does not say."""
    return max(shares(compare, row), key=lambda share: abs(share - 1), default=None)


def is_off(compare: CompareRecord, row: Row) -> bool:
    """Whether a seed missed the budget by more than 5 %, or whoever wrote the record says so."""
    share = farthest(compare, row)
    return row.mismatch if share is None else row.mismatch or abs(share - 1) > MISMATCH_LIMIT


def by_whole_steps(compare: CompareRecord, row: Row) -> bool:
    """Whether what is missing would not have paid for one more step."""
    share, budget = farthest(compare, row), compare.budgets[row.budget].flops if compare.budgets else None
    return bool(row.step_flops and budget and share is not None and 0 <= 1 - share < row.step_flops / budget)


def mark(compare: CompareRecord, row: Row) -> str:
    """What stands under the score of a row that is off its budget; empty under others."""
    if not is_off(compare, row):
        return ""
    share = farthest(compare, row)
    if share is None or abs(share - 1) <= MISMATCH_LIMIT:
        return "off budget"
    return f"{share:.0%} of the budget{' (whole steps)' if by_whole_steps(compare, row) else ''}"


def spread(compare: CompareRecord, rows: Iterable[Row]) -> str:
    """What may be said of the compute of these rows together, as the end of a sentence; empty where nothing may."""
    found = [share for row in rows for share in shares(compare, row)]
    if not found:
        return ""
    low, high = min(found), max(found)
    share = f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
    return f"{share} of the budget in training FLOPs"
