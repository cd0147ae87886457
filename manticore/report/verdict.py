"""What a run shows, in words: is there anything better than the best parent at equal compute, and what does it cost.

Every row of the comparison that is no parent is looked at, at every budget, and the best of them is named with its
price at inference. A path of one parent throughout is that parent, and never called a hybrid. What scores below a
parent as it was downloaded has lost, whatever training made of the parents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from manticore import quantities
from manticore.experiments.intervals import t_quantile
from manticore.experiments.rows import HYBRID, is_larger
from manticore.report import spending
from manticore.report.candidates import barred, held_out
from manticore.report.cautions import ENOUGH_SEEDS
from manticore.report.leads import leads
from manticore.report.matches import (
    AHEAD,
    BEHIND,
    FROM_BAD_TO_GOOD,
    Match,
    Standing,
    best,
    comparisons,
    is_parent,
    match,
    parents_at,
    score_row,
    worst,
)
from manticore.report.naming import alone, budget_words, subject
from manticore.report.results import Results
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import CompareRecord, Row


@dataclass(frozen=True)
class Verdict:
    outcome: Standing
    sentence: str
    label: str
    """The outcome in a few words, with the budgets that it is confined to."""


def verdict(results: Results) -> Verdict:
    """What was found, with its numbers.

    The outcome is the worst of all budgets', and never better than what is named is against the parents as they were
    downloaded.
    """
    parent, matches = alone(results), comparisons(results)
    if parent is not None and not any(match.outcome in AHEAD for match in matches):
        return _take_the_parent(results, parent, matches)
    if not matches:
        return Verdict(Standing.UNKNOWN, _why_unknown(results), Standing.UNKNOWN.value)
    compare = results.compare or CompareRecord()
    main = next((match for match in matches if match.budget == compare.main_budget), matches[0])
    sentence = _found(results, matches)
    named = {match.budget for match in matches if match.row.model == HYBRID}
    own = [match for match in comparisons(results, [HYBRID]) if match.budget not in named]
    if own:
        sentence += f" The {'discrete ' if results.path else ''}hybrid: {_found(results, own)}"
    spoken: dict[str, Match] = {}
    for each in (*matches, *own):
        # a price beside the parent that is best in the end, not before any training
        if each.row.model not in spoken or each.budget == compare.main_budget:
            spoken[each.row.model] = each
    if parent is not None:
        sentence += f" The path found keeps {parent} throughout."
    if (
        spoken.keys() == {HYBRID}
        and results.search
        and main.outcome in AHEAD
        and matches[-1].outcome not in AHEAD
        and matches[-1].budget not in compare.kinds[0]
    ):
        sentence += " The search pays only where its answer is used more than once."
    sentence += "".join(_price(results, each, only=len(spoken) == 1) for each in spoken.values())
    outcome, label = worst([match.outcome for match in matches]), _label(results, matches)
    sentence += _larger(results, main)
    known, found = _as_downloaded(results, main.row)
    if found is not None and FROM_BAD_TO_GOOD.index(found) < FROM_BAD_TO_GOOD.index(outcome):
        outcome, label = found, f"{found.value}, against a parent as downloaded"
    return Verdict(outcome, sentence + known, label)


def _take_the_parent(results: Results, parent: str, matches: Sequence[Match]) -> Verdict:
    """The verdict where every block keeps one parent, and nothing else is better."""
    compare, task = results.compare or CompareRecord(), results.task or TaskInfo()
    name = results.component_names[results.path[0]]
    out = barred(results)
    shown, better, first = [], None, None
    for budget in (kind[-1] for kind in compare.kinds):
        row = compare.row(name, budget) or score_row(compare, HYBRID, budget)
        parents = [row for row in parents_at(compare, budget) if row.model not in out]
        if row is None or row.mean is None or not parents:
            continue
        first = first or row
        shown.append(f"{quantities.score(row.mean)} {budget_words(results, budget, equal=_equal(compare, [row]))}")
        rival = match(budget, best(parents, task), row, task.higher_is_better)
        better = rival if rival.row.model != name and rival.outcome in AHEAD else None
    metric = quantities.shorten(task.primary_metric, 30)
    if first is None:
        evidence = held_out(results)
        if not evidence:
            sentence = f"Every block keeps {parent}: what was found is that parent, and {_no_comparison(results)}"
            return Verdict(Standing.UNKNOWN, f"{sentence}, so it cannot be said how good it is.", "not known")
        sentence = f"{parent} alone is as good as any path that the search looked at: take it. {evidence}"
        return Verdict(Standing.PARENT, sentence, Standing.PARENT.value)
    if better is not None:
        other, what = quantities.shorten(better.row.model, 40), budget_words(results, better.budget)
        sentence = (
            f"{other} alone is better than what the search found, {parent} alone: take {other} ({metric} "
            f"{quantities.score(better.row.mean)} against {quantities.score(better.parent.mean)} {what})."
        )
        first = better.row
    else:
        among = " as all that keeps the limits" if out else ""
        sentence = f"{parent} alone is as good{among}: take it ({metric} {', '.join(shown)})."
    if matches:
        sentence += f" {_found(results, matches)}"
    known, _ = _as_downloaded(results, first)
    return Verdict(Standing.PARENT, sentence + known, "another parent is better" if better else Standing.PARENT.value)


def _label(results: Results, matches: Sequence[Match]) -> str:
    outcomes = [match.outcome for match in matches]
    alike = len(set(outcomes)) == 1
    if not alike and results.compare and results.compare.over_budgets:
        return worst(outcomes).value
    said = [f"{m.outcome.value}{'' if alike else f' {budget_words(results, m.budget)}'}" for m in matches]
    who = {match.row.model for match in matches}
    named = "" if who == {HYBRID} else " and ".join(subject(results, model) for model in sorted(who)) + ": "
    return named + (said[0] if alike else "; ".join(said))


def _price(results: Results, match: Match, *, only: bool) -> str:
    """What a row costs at inference beside its best parent; said of every row that is named."""
    parent = quantities.shorten(match.parent.model, 40)
    who = "Its price" if only else f"The price of {subject(results, match.row.model)}"
    parts = list(_prices(match.row, match.parent, parent))
    if not parts:
        return f" {who} at inference is not in the record." if match.outcome in AHEAD else ""
    return f" {who} at inference, beside {parent}: {', '.join(parts)}."


def _prices(row: Row, parent: Row, name: str) -> Iterator[str]:
    for ours, theirs, shown, what in (
        (row.parameters, parent.parameters, quantities.count, "parameters"),
        (row.flops_per_token, parent.flops_per_token, quantities.flops, "per token"),
        (row.cache_bytes_per_token, parent.cache_bytes_per_token, quantities.memory, "of cache per token"),
        (row.state_bytes, parent.state_bytes, quantities.memory, "of state"),
    ):
        if ours is None or not (ours or theirs):
            continue
        if theirs is None:
            yield f"{shown(ours)} {what}"
        else:
            yield f"{shown(ours)} {what} ({f'{ours / theirs:.2g}×' if theirs > 0 else f'{name}: none'})"


def _larger(results: Results, main: Match) -> str:
    """Sentences on larger single models, which are no parents: what they score beside the better of a match."""
    compare, task = results.compare or CompareRecord(), results.task or TaskInfo()
    ahead = best([main.row, main.parent], task)
    said = ""
    for model in filter(is_larger, compare.models):
        row = compare.row(model, main.budget)
        if row is None or row.mean is None:
            continue
        against = match(main.budget, row, ahead, task.higher_is_better)
        stands = "ahead of" if against.outcome in AHEAD else "behind" if against.outcome in BEHIND else "level with"
        times = f", {row.parameters / ahead.parameters:.2g}×" if row.parameters and ahead.parameters else ""
        said += (
            f" For scale, {subject(results, model)} ({quantities.count(row.parameters)} parameters{times}) scores "
            f"{quantities.score(row.mean)} {budget_words(results, main.budget)}, {stands} "
            f"{subject(results, ahead.model)} ({quantities.score(ahead.mean)})."
        )
    return said


def _as_downloaded(results: Results, row: Row) -> tuple[str, Standing | None]:
    """A sentence on the best parent before any training, and what a row is against it."""
    compare, task = results.compare or CompareRecord(), results.task or TaskInfo()
    scores = [
        (found.metrics.get(task.primary_metric), found.model)
        for found in compare.untrained
        if is_parent(compare, found.model)
    ]
    known = [(score, model) for score, model in scores if score is not None]
    if not known or row.mean is None:
        return "", None
    score, model = (max if task.higher_is_better else min)(known)
    sign = 1 if task.higher_is_better else -1
    low, high = row.bounds or (row.mean, row.mean)
    ahead = sign * (row.mean - score)
    if row.bounds is None:
        outcome = Standing.SEEN_BETTER if ahead > 0 else Standing.SEEN_WORSE
    elif low <= score <= high:
        outcome = Standing.NOISE
    else:
        outcome = Standing.BETTER if ahead > 0 else Standing.WORSE
    if ahead > 0 and any(budget.flops == 0 for budget in compare.budgets):
        # said with that budget
        return "", outcome
    words = f" As downloaded, without any training, {quantities.shorten(model, 40)} scores {quantities.score(score)}"
    return words + ("." if ahead > 0 else f", which {subject(results, row.model)} does not reach."), outcome


def _equal(compare: CompareRecord, rows: Sequence[Row]) -> bool:
    return not any(spending.is_off(compare, row) for row in rows)


def _found(results: Results, matches: Sequence[Match]) -> str:
    """What the matches show, as one sentence."""
    compare = results.compare or CompareRecord()
    if compare.over_budgets:
        return leads(results, matches)
    rows = [row for match in matches for row in (match.row, match.parent)]
    equal = _equal(compare, rows)
    spent = "" if equal else spending.spread(compare, rows) or "training FLOPs off the budget"
    if all(match.one_seed for match in matches):
        return _without_intervals(results, matches, spent)
    sentence, before = f"With {spent} each, " if spent else "", ""
    for m in matches:
        if before:
            sentence += ", and " if m.outcome is matches[0].outcome else ", but "
        who = subject(results, m.row.model) if m.row.model != before else ""
        sentence += f"{who}{' ' if who else ''}{_finding(results, m, equal)}"
        before = m.row.model
    return f"{_sentence_case(sentence)}."


def _finding(results: Results, match: Match, equal: bool) -> str:
    task, gap = results.task or TaskInfo(), quantities.score(abs(match.gap))
    parent = f"the best parent ({quantities.shorten(match.parent.model, 40)})"
    phrase = {
        Standing.BETTER: f"beats {parent} by {gap}",
        Standing.WORSE: f"loses to {parent} by {gap}",
        Standing.NOISE: f"is within noise of {parent}",
        Standing.SEEN_BETTER: f"was seen {gap} ahead of {parent}",
        Standing.SEEN_WORSE: f"was seen {gap} behind {parent}",
        Standing.SEEN_LEVEL: f"scored the same as {parent}",
    }[match.outcome]
    ours, theirs = quantities.score(match.row.mean), quantities.score(match.parent.mean)
    lack = "; too few seeds for an interval" if match.one_seed else ""
    what = budget_words(results, match.budget, equal=equal)
    return f"{phrase} {what} ({quantities.shorten(task.primary_metric, 30)} {ours} against {theirs}{lack})"


def _without_intervals(results: Results, matches: Sequence[Match], spent: str) -> str:
    """What was seen, where there are too few seeds to say how sure it is, and what a second seed would add."""
    seeds = min(min(len(match.row.seeds), len(match.parent.seeds)) for match in matches)
    metric = quantities.shorten((results.task or TaskInfo()).primary_metric, 30)
    sentence, before = "Without intervals " if seeds > 1 else "With one seed ", ""
    for m in matches:
        who = subject(results, m.row.model) + " scored " if m.row.model != before else ""
        ours, theirs = quantities.score(m.row.mean), quantities.score(m.parent.mean)
        gap = f"{quantities.score(abs(m.gap))} {'better' if m.gap > 0 else 'worse'}" if m.gap else "no gap"
        sentence += (
            f"{'; and ' if before else ''}{who}{ours} against {theirs} "
            f"of the best parent ({quantities.shorten(m.parent.model, 40)}), {gap} "
            f"{budget_words(results, m.budget, equal=not spent)}"
        )
        before = m.row.model
    sentence += f" ({metric}{f', each with {spent}' if spent else ''})."
    if seeds > 1 or not matches[0].gap:
        return f"{sentence} How far seeds differ was not measured; {ENOUGH_SEEDS} or more would show it."
    # the intervals of two seeds each reach t/2 times the difference of the two scores to either side
    alike = abs(matches[0].gap) / t_quantile(1)
    return (
        f"{sentence} How far seeds differ was not measured. A second seed would give 95 % intervals: at a gap of "
        f"{quantities.score(abs(matches[0].gap))} they stay apart if each model's two scores lie within {alike:.2g} of "
        f"each other; {ENOUGH_SEEDS} seeds would need far less."
    )


def _sentence_case(text: str) -> str:
    """A name at the beginning stays as it is."""
    return "T" + text[1:] if text.startswith("the ") else text


def _no_comparison(results: Results) -> str:
    scored = results.compare is not None and results.compare.rows
    return "the comparison has no finite score for it" if scored else "this run has no comparison yet"


def _why_unknown(results: Results) -> str:
    found = subject(results, HYBRID)
    if results.compare is None or not results.compare.rows:
        why = f"This run has no comparison yet, so it cannot be said whether {found} beats its parents."
        return " ".join(filter(None, [why, held_out(results)]))
    return (
        f"The comparison has no finite score for both {found} and a parent, "
        f"so it cannot be said whether {found} beats its parents."
    )
