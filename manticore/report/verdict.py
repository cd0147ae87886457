"""What a run shows, in words: did the hybrid beat its parents at equal compute, and what to be careful about.

Two scores differ only where their 95 % intervals do not overlap; with one seed nothing can be told from noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from manticore.report import units
from manticore.report.results import MISMATCH_LIMIT, Compare, Results, Row, TaskInfo
from manticore.report.rounding import rounding_notes

HYBRID = "hybrid"
NOT_PARENTS = ("ensemble", "supernet (soft)", HYBRID)
"""Models of a comparison that are no single parent."""

ENOUGH_SEEDS = 3


class Outcome(Enum):
    BETTER = "better"
    WORSE = "worse"
    NOISE = "within noise"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Match:
    """The hybrid against the best parent at one budget."""

    budget: int
    outcome: Outcome
    hybrid: Row
    parent: Row
    one_seed: bool


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    sentence: str


def verdict(results: Results) -> Verdict:
    """One sentence with its numbers; the outcome is that of the first budget (fine-tuning alone)."""
    matches = comparisons(results)
    if not matches or results.compare is None:
        return Verdict(Outcome.UNKNOWN, _why_unknown(results))
    task, budgets = results.task or TaskInfo(), results.compare.budgets
    if all(match.one_seed for match in matches):
        return Verdict(Outcome.UNKNOWN, _without_intervals(matches, task, [budget.name for budget in budgets]))
    findings = [_finding(match, task, budgets[match.budget].name if budgets else "") for match in matches]
    sentence = f"At equal compute the hybrid {findings[0]}"
    for match, finding in zip(matches[1:], findings[1:]):
        sentence += f"{', and' if match.outcome is matches[0].outcome else ', but'} {finding}"
    return Verdict(matches[0].outcome, sentence + ".")


def comparisons(results: Results) -> list[Match]:
    """One match per budget where both the hybrid and a parent have a score."""
    compare = results.compare
    if compare is None:
        return []
    task = results.task or TaskInfo()
    matches = []
    for budget in range(max(1, len(compare.budgets))):
        hybrid = score_row(compare, HYBRID, budget)
        scored = [r for r in compare.rows if r.budget == budget and is_parent(r) and r.mean is not None]
        if hybrid is None or hybrid.mean is None or not scored:
            continue
        parent = (max if task.higher_is_better else min)(scored, key=lambda r: r.mean or 0.0)
        matches.append(_match(budget, hybrid, parent, task.higher_is_better))
    return matches


def score_row(compare: Compare, model: str, budget: int) -> Row | None:
    """The row with a model's score at a budget.

    Align, search and fine-tuning together are what the hybrid cost, so where only its parents were trained with
    the larger budget, the hybrid's one score stands against theirs.
    """
    row = compare.row(model, budget)
    return compare.row(HYBRID, 0) if row is None and model == HYBRID else row


def is_parent(row: Row) -> bool:
    return row.model not in NOT_PARENTS


def warnings(results: Results) -> list[str]:
    """What a reader must know before believing the numbers, most serious first."""
    found = []
    if results.status and results.status != "complete":
        found.append(f"The run is {results.status}: parts are missing and the rest may be preliminary.")
    combine, compare = results.combine, results.compare
    for name, matched in zip(results.component_names, combine.reembedded if combine else ()):
        if combine is not None and matched is not None and matched.coverage is not None:
            found.append(
                f"{units.shorten(name, 60)} was re-embedded for the tokenizer of {units.shorten(combine.tokenizer, 60)}"
                f" ({matched.coverage:.0%} of the tokens matched exactly or by role); "
                "on text its scores are those of the re-embedded model."
            )
    found += rounding_notes(results)
    if compare is None:
        return found
    for row in compare.rows:
        budget = compare.budgets[row.budget].flops if row.budget < len(compare.budgets) else None
        spent = [s.flops for s in row.seeds if s.flops is not None]
        off = max((abs(f / budget - 1) for f in spent), default=0.0) if budget else 0.0
        if row.mismatch or off > MISMATCH_LIMIT:
            share = f"{off:.1%} off the budget" if off > MISMATCH_LIMIT else "marked as off the budget"
            found.append(
                f"{units.shorten(row.model, 60)}, budget {row.budget + 1}: training FLOPs are {share} "
                f"(limit {MISMATCH_LIMIT:.0%}); this row is not at equal compute."
            )
        if row.diverged:
            rates = ", ".join(f"{rate:g}" for rate in row.diverged)
            found.append(
                f"{units.shorten(row.model, 60)}, budget {row.budget + 1}: diverged with learning rate {rates}, "
                "which counts as the worst."
            )
        if row.mean is None:
            found.append(f"{units.shorten(row.model, 60)}, budget {row.budget + 1}: no finite score.")
    seeds = [len(r.seeds) for r in compare.rows if r.seeds]
    if seeds and min(seeds) < ENOUGH_SEEDS:
        found.append(
            f"Only {min(seeds)} seed{'s' if min(seeds) > 1 else ''} for some rows: "
            f"at least {ENOUGH_SEEDS} are needed before a difference means much."
        )
    return found


def _match(budget: int, hybrid: Row, parent: Row, higher_is_better: bool) -> Match:
    a, b = hybrid.bounds, parent.bounds
    one_seed = a is None or b is None
    if a is None or b is None or (a[0] <= b[1] and b[0] <= a[1]):
        outcome = Outcome.NOISE
    else:
        outcome = Outcome.BETTER if (a[0] > b[1]) == higher_is_better else Outcome.WORSE
    return Match(budget, outcome, hybrid, parent, one_seed)


def _finding(match: Match, task: TaskInfo, budget: str) -> str:
    parent = f"its best parent, {units.shorten(match.parent.model, 40)},"
    phrase = {
        Outcome.BETTER: f"beats {parent}",
        Outcome.WORSE: f"loses to {parent}",
        Outcome.NOISE: f"is within noise of {parent}",
    }[match.outcome]
    if match.one_seed:
        phrase = f"cannot be told from {parent}"
    if budget:
        phrase += f" with the budget “{units.shorten(budget, 60)}”"
    ours, theirs = units.score(match.hybrid.mean), units.score(match.parent.mean)
    lack = "; too few seeds for an interval" if match.one_seed else ""
    return f"{phrase} ({units.shorten(task.primary_metric, 30)} {ours} against {theirs}{lack})"


def _without_intervals(matches: list[Match], task: TaskInfo, budgets: list[str]) -> str:
    """What was seen, where there are too few seeds to say how sure it is."""
    seeds = min(min(len(match.hybrid.seeds), len(match.parent.seeds)) for match in matches)
    metric = units.shorten(task.primary_metric, 30)
    seen = []
    for match in matches:
        ours, theirs = units.score(match.hybrid.mean), units.score(match.parent.mean)
        budget = f", with the budget “{units.shorten(budgets[match.budget], 60)}”" if budgets else ""
        seen.append(f"{ours} against {theirs} of its best parent, {units.shorten(match.parent.model, 40)}{budget}")
    known = "Without intervals" if seeds > 1 else "With one seed"
    return (
        f"{known} the hybrid scored {', and '.join(seen)} ({metric}, at equal compute); "
        f"{ENOUGH_SEEDS} or more seeds are needed for an interval."
    )


def _why_unknown(results: Results) -> str:
    if results.compare is None or not results.compare.rows:
        return "This run has no comparison yet, so it cannot be said whether the hybrid beats its parents."
    return (
        "The comparison has no finite score for both the hybrid and a parent, "
        "so it cannot be said whether the hybrid beats its parents."
    )
