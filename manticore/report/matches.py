"""What is no parent against the best parent, at each budget of a comparison.

Two scores differ only where their 95 % intervals do not overlap; with one seed there is what was seen and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from manticore.experiments.rows import HYBRID, SUPERNET, is_ensemble, is_larger, is_made
from manticore.report.naming import alone
from manticore.report.results import Results
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import CompareRecord, Row


class Standing(Enum):
    BETTER = "better"
    WORSE = "worse"
    NOISE = "within noise"
    SEEN_BETTER = "ahead with one seed, not proven"
    SEEN_WORSE = "behind with one seed"
    SEEN_LEVEL = "level with one seed"
    MIXED = "better at one budget, worse at another"
    PARENT = "a parent alone is as good"
    UNKNOWN = "not known"


FROM_BAD_TO_GOOD = (
    Standing.WORSE,
    Standing.SEEN_WORSE,
    Standing.UNKNOWN,
    Standing.MIXED,
    Standing.NOISE,
    Standing.SEEN_LEVEL,
    Standing.SEEN_BETTER,
    Standing.BETTER,
)
AHEAD, BEHIND = (Standing.BETTER, Standing.SEEN_BETTER), (Standing.WORSE, Standing.SEEN_WORSE)


@dataclass(frozen=True)
class Match:
    """A row against the best parent at one budget."""

    budget: int
    outcome: Standing
    row: Row
    parent: Row
    one_seed: bool
    gap: float
    """By how much the row's mean is better, in the task's metric; negative where it is worse."""


def comparisons(results: Results, models: Sequence[str] | None = None) -> list[Match]:
    """One match per budget where a parent has a score and one of the models too: the best of them.

    Args:
        results: with the comparison.
        models: names of rows; None: all that are no parent. A path of one parent is none of them.
    """
    compare = results.compare
    if compare is None:
        return []
    entrants = [m for m in compare.models if not (is_parent(compare, m) or is_larger(m))] if models is None else models
    if alone(results) is not None:
        entrants = [model for model in entrants if model != HYBRID]
    task = results.task or TaskInfo()
    found = []
    for budget in range(max(1, len(compare.budgets))):
        rows = [row for model in entrants if (row := score_row(compare, model, budget)) and row.mean is not None]
        parents = parents_at(compare, budget)
        if rows and parents:
            found.append(match(budget, best(rows, task), best(parents, task), task.higher_is_better))
    return found


def best(rows: Sequence[Row], task: TaskInfo) -> Row:
    """The row with the best mean; a tie goes to the one that costs least to run."""
    ordered = sorted(rows, key=lambda row: 2 * (row.model == SUPERNET) + is_ensemble(row.model))
    return (max if task.higher_is_better else min)(ordered, key=lambda row: row.mean or 0.0)


def match(budget: int, row: Row, parent: Row, higher_is_better: bool) -> Match:
    """What two rows' means and intervals allow to say."""
    a, b = row.bounds, parent.bounds
    gap = ((row.mean or 0.0) - (parent.mean or 0.0)) * (1 if higher_is_better else -1)
    if a is None or b is None:
        outcome = Standing.SEEN_BETTER if gap > 0 else Standing.SEEN_WORSE if gap < 0 else Standing.SEEN_LEVEL
    elif a[0] <= b[1] and b[0] <= a[1]:
        outcome = Standing.NOISE
    else:
        outcome = Standing.BETTER if (a[0] > b[1]) == higher_is_better else Standing.WORSE
    return Match(budget, outcome, row, parent, a is None or b is None, gap)


def worst(outcomes: Sequence[Standing]) -> Standing:
    """The outcome of several together: the least of them, or ``MIXED`` where one is ahead and another behind."""
    least = min(outcomes, key=FROM_BAD_TO_GOOD.index)
    return Standing.MIXED if least in BEHIND and any(each in AHEAD for each in outcomes) else least


def score_row(compare: CompareRecord, model: str, budget: int) -> Row | None:
    """The row with a model's score at a budget.

    Align, search and fine-tuning together are what the hybrid cost, so where only its parents were trained with
    the larger budget, the hybrid's one score stands against theirs.
    """
    row = compare.row(model, budget)
    return compare.row(HYBRID, 0) if row is None and model == HYBRID and not compare.over_budgets else row


def parents_at(compare: CompareRecord, budget: int) -> list[Row]:
    """The rows of components by themselves that have a score at a budget."""
    return [
        row for row in compare.rows if row.budget == budget and is_parent(compare, row.model) and row.mean is not None
    ]


def is_parent(compare: CompareRecord, model: str) -> bool:
    """Whether a row is of a single model as it was given: no hybrid, no ensemble, no larger one for scale."""
    given = [found.model for found in compare.untrained]
    # older records list none
    return not (is_larger(model) or is_made(model)) and (not given or model in given)
