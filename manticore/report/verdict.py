"""What a run shows, in words: did the hybrid beat its parents at equal compute, and what to be careful about.

Two scores differ only where their 95 % intervals do not overlap; with one seed there is what was seen and no more. A
hybrid that scores below a parent as it was downloaded has lost, whatever training made of the parents.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from manticore import quantities
from manticore.experiments.intervals import t_quantile
from manticore.experiments.rows import HYBRID, NOT_PARENTS
from manticore.report import spending
from manticore.report.results import Results
from manticore.report.rounding import rounding_notes
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import MISMATCH_LIMIT, CompareRecord, Row

ENOUGH_SEEDS = 3


class Standing(Enum):
    BETTER = "better"
    WORSE = "worse"
    NOISE = "within noise"
    SEEN_BETTER = "ahead with one seed, not proven"
    SEEN_WORSE = "behind with one seed"
    SEEN_LEVEL = "level with one seed"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Match:
    """The hybrid against the best parent at one budget."""

    budget: int
    outcome: Standing
    hybrid: Row
    parent: Row
    one_seed: bool
    gap: float
    """By how much the hybrid's mean is better, in the task's metric; negative where it is worse."""


@dataclass(frozen=True)
class Verdict:
    outcome: Standing
    sentence: str
    label: str
    """The outcome in a few words, with the budget that it is confined to."""


_RANK = (
    Standing.WORSE,
    Standing.SEEN_WORSE,
    Standing.UNKNOWN,
    Standing.NOISE,
    Standing.SEEN_LEVEL,
    Standing.SEEN_BETTER,
    Standing.BETTER,
)
"""From bad to good."""


def verdict(results: Results) -> Verdict:
    """What was found, with its numbers; the outcome is that of the first budget (fine-tuning alone).

    It is never better than what the hybrid is against its parents as they were downloaded.
    """
    matches, compare = comparisons(results), results.compare
    if not matches or compare is None:
        return Verdict(Standing.UNKNOWN, _why_unknown(results), Standing.UNKNOWN.value)
    task, budgets = results.task or TaskInfo(), [budget.name for budget in compare.budgets]
    rows = [row for match in matches for row in (match.hybrid, match.parent)]
    equal = not any(spending.is_off(compare, row) for row in rows)
    if all(match.one_seed for match in matches):
        words = "at equal compute" if equal else f"each with {_unequal(compare, rows)}"
        sentence = _without_intervals(matches, task, budgets, words)
    else:
        findings = [_finding(match, task, budgets[match.budget] if budgets else "") for match in matches]
        words = "At equal compute" if equal else f"With {_unequal(compare, rows)} each,"
        sentence = f"{words} the hybrid {findings[0]}"
        for match, finding in zip(matches[1:], findings[1:]):
            sentence += f"{', and' if match.outcome is matches[0].outcome else ', but'} {finding}"
        sentence += "."
    outcome, label = matches[0].outcome, matches[0].outcome.value
    worst = min(matches, key=lambda match: _RANK.index(match.outcome))
    if budgets and worst.outcome is not outcome:
        names = [quantities.shorten(budgets[match.budget], 60) for match in (matches[0], worst)]
        label = f"{outcome.value} (“{names[0]}”); {worst.outcome.value} (“{names[1]}”)"
    known, found = _as_downloaded(compare, task, matches[0])
    if found is not None and _RANK.index(found) < _RANK.index(outcome):
        outcome, label = found, f"{found.value}, against a parent as downloaded"
    return Verdict(outcome, f"{sentence}{known}{_one_parent(results)}", label)


def _one_parent(results: Results) -> str:
    """A sentence where the hybrid is a parent under another name."""
    if len(set(results.path)) != 1:
        return ""
    name = quantities.shorten(results.component_names[results.path[0]], 40)
    return f" Every block keeps {name}: this hybrid is that parent, cut and joined again."


def _as_downloaded(compare: CompareRecord, task: TaskInfo, match: Match) -> tuple[str, Standing | None]:
    """A sentence on the best parent before any training, and what the hybrid is against it."""
    scores = [(found.metrics.get(task.primary_metric), found.model) for found in compare.untrained]
    known = [(score, model) for score, model in scores if score is not None]
    if not known or match.hybrid.mean is None:
        return "", None
    score, model = (max if task.higher_is_better else min)(known)
    sign = 1 if task.higher_is_better else -1
    low, high = match.hybrid.bounds or (match.hybrid.mean, match.hybrid.mean)
    ahead = sign * (match.hybrid.mean - score)
    if match.hybrid.bounds is None:
        outcome = Standing.SEEN_BETTER if ahead > 0 else Standing.SEEN_WORSE
    elif low <= score <= high:
        outcome = Standing.NOISE
    else:
        outcome = Standing.BETTER if ahead > 0 else Standing.WORSE
    words = f" As downloaded, without any training, {quantities.shorten(model, 40)} scores {quantities.score(score)}"
    return words + ("." if ahead > 0 else ", which the hybrid does not reach."), outcome


def _unequal(compare: CompareRecord, rows: list[Row]) -> str:
    return spending.spread(compare, rows) or "training FLOPs off the budget"


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


def score_row(compare: CompareRecord, model: str, budget: int) -> Row | None:
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
                f"{quantities.shorten(name, 60)} was re-embedded for the tokenizer of "
                f"{quantities.shorten(combine.tokenizer, 60)} ({matched.coverage:.0%} of the tokens "
                "matched exactly or by role); on text its scores are those of the re-embedded model."
            )
    found += rounding_notes(results)
    if compare is None:
        return found
    for row in compare.rows:
        if spending.is_off(compare, row):
            found.append(f"{quantities.shorten(row.model, 60)}, budget {row.budget + 1}: {_off(compare, row)}")
        if row.diverged:
            rates = ", ".join(f"{rate:g}" for rate in row.diverged)
            found.append(
                f"{quantities.shorten(row.model, 60)}, budget {row.budget + 1}: diverged with learning rate {rates}, "
                "which counts as the worst."
            )
        if row.mean is None:
            found.append(f"{quantities.shorten(row.model, 60)}, budget {row.budget + 1}: no finite score.")
    seeds = [len(r.seeds) for r in compare.rows if r.seeds]
    if seeds and min(seeds) < ENOUGH_SEEDS:
        found.append(
            f"Only {min(seeds)} seed{'s' if min(seeds) > 1 else ''} for some rows: "
            f"at least {ENOUGH_SEEDS} are needed before a difference means much."
        )
    return found


def _off(compare: CompareRecord, row: Row) -> str:
    share = spending.farthest(compare, row)
    if spending.by_whole_steps(compare, row):
        return (
            f"trained with {share:.1%} of the budget, for one step more would not have fitted; "
            "a larger budget or a smaller batch comes nearer to equal compute."
        )
    off = 0.0 if share is None else abs(share - 1)
    said = f"{off:.1%} off the budget" if off > MISMATCH_LIMIT else "marked as off the budget"
    return f"training FLOPs are {said} (limit {MISMATCH_LIMIT:.0%}); this row is not at equal compute."


def _match(budget: int, hybrid: Row, parent: Row, higher_is_better: bool) -> Match:
    a, b = hybrid.bounds, parent.bounds
    one_seed = a is None or b is None
    gap = ((hybrid.mean or 0.0) - (parent.mean or 0.0)) * (1 if higher_is_better else -1)
    if a is None or b is None:
        outcome = Standing.SEEN_BETTER if gap > 0 else Standing.SEEN_WORSE if gap < 0 else Standing.SEEN_LEVEL
    elif a[0] <= b[1] and b[0] <= a[1]:
        outcome = Standing.NOISE
    else:
        outcome = Standing.BETTER if (a[0] > b[1]) == higher_is_better else Standing.WORSE
    return Match(budget, outcome, hybrid, parent, one_seed, gap)


def _finding(match: Match, task: TaskInfo, budget: str) -> str:
    parent = f"its best parent, {quantities.shorten(match.parent.model, 40)},"
    phrase = {
        Standing.BETTER: f"beats {parent}",
        Standing.WORSE: f"loses to {parent}",
        Standing.NOISE: f"is within noise of {parent}",
        Standing.SEEN_BETTER: f"was seen ahead of {parent}",
        Standing.SEEN_WORSE: f"was seen behind {parent}",
        Standing.SEEN_LEVEL: f"scored the same as {parent}",
    }[match.outcome]
    if budget:
        phrase += f" with the budget “{quantities.shorten(budget, 60)}”"
    ours, theirs = quantities.score(match.hybrid.mean), quantities.score(match.parent.mean)
    lack = "; too few seeds for an interval" if match.one_seed else ""
    return f"{phrase} ({quantities.shorten(task.primary_metric, 30)} {ours} against {theirs}{lack})"


def _without_intervals(matches: list[Match], task: TaskInfo, budgets: list[str], words: str) -> str:
    """What was seen, where there are too few seeds to say how sure it is, and what a second seed would add."""
    seeds = min(min(len(match.hybrid.seeds), len(match.parent.seeds)) for match in matches)
    metric = quantities.shorten(task.primary_metric, 30)
    seen = []
    for match in matches:
        ours, theirs = quantities.score(match.hybrid.mean), quantities.score(match.parent.mean)
        budget = f", with the budget “{quantities.shorten(budgets[match.budget], 60)}”" if budgets else ""
        gap = f"{quantities.score(abs(match.gap))} {'better' if match.gap > 0 else 'worse'}" if match.gap else "no gap"
        seen.append(
            f"{ours} against {theirs} of its best parent, {quantities.shorten(match.parent.model, 40)}: {gap}{budget}"
        )
    known = "Without intervals" if seeds > 1 else "With one seed"
    sentence = f"{known} the hybrid scored {'; and '.join(seen)} ({metric}, {words})."
    if seeds > 1 or not matches[0].gap:
        return f"{sentence} How far seeds differ was not measured; {ENOUGH_SEEDS} or more would show it."
    # the intervals of two seeds each reach t/2 times the difference of the two scores to either side
    alike = abs(matches[0].gap) / t_quantile(1)
    return (
        f"{sentence} How far seeds differ was not measured. A second seed would give 95 % intervals: at a gap of "
        f"{quantities.score(abs(matches[0].gap))} they stay apart if each model's two scores lie within {alike:.2g} of "
        f"each other; {ENOUGH_SEEDS} seeds would need far less."
    )


def _why_unknown(results: Results) -> str:
    if results.compare is None or not results.compare.rows:
        return "This run has no comparison yet, so it cannot be said whether the hybrid beats its parents."
    return (
        "The comparison has no finite score for both the hybrid and a parent, "
        "so it cannot be said whether the hybrid beats its parents."
    )
