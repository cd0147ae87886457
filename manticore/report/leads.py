"""Who leads over the budgets of a comparison, in words: from where to where, and where lines cross.

A lead inside the intervals is none: there the two are level. Where lines cross is read off between two budgets, on
straight lines between the means, and said to be about there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from manticore import quantities
from manticore.report.matches import AHEAD, BEHIND, Match, score_row
from manticore.report.naming import budget_words, subject
from manticore.report.results import Results
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import CompareRecord


@dataclass(frozen=True)
class Stretch:
    """Neighbouring budgets with the same leader."""

    matches: tuple[Match, ...]
    who: tuple[str, ...]
    """The row that leads; or two that are level: what is no parent, and the best parent."""


def stretches(matches: Sequence[Match]) -> list[Stretch]:
    """The budgets of one kind, in order, cut where the leader changes."""
    found: list[Stretch] = []
    for match in matches:
        who: tuple[str, ...] = (match.row.model, match.parent.model)
        if match.outcome in AHEAD:
            who = who[:1]
        elif match.outcome in BEHIND:
            who = who[1:]
        if found and found[-1].who == who:
            found[-1] = Stretch((*found[-1].matches, match), who)
        else:
            found.append(Stretch((match,), who))
    return found


def crossing(results: Results, before: Stretch, after: Stretch) -> float | None:
    """FLOPs at which the line of one leader crosses that of the next; None where they are not two lines that do."""
    compare, task = results.compare or CompareRecord(), results.task or TaskInfo()
    if len(before.who) != 1 or len(after.who) != 1:
        return None
    ends = before.matches[-1].budget, after.matches[0].budget
    ahead = []
    for budget in ends:
        ours, theirs = (score_row(compare, who, budget) for who in (*before.who, *after.who))
        if ours is None or theirs is None or ours.mean is None or theirs.mean is None:
            return None
        ahead.append((ours.mean - theirs.mean) * (1 if task.higher_is_better else -1))
    start, stop = (compare.budgets[budget].flops for budget in ends)
    if start is None or stop is None or not ahead[0] > 0 > ahead[1]:
        return None
    return start + ahead[0] / (ahead[0] - ahead[1]) * (stop - start)


def leads(results: Results, matches: Sequence[Match]) -> str:
    """A sentence for each kind of budgets: who leads from where to where, with the scores at both ends."""
    compare = results.compare or CompareRecord()
    said = []
    for kind in compare.kinds:
        own = [match for match in matches if match.budget in kind]
        if own:
            said.append(_course(results, own))
    return " ".join(said)


def _course(results: Results, matches: Sequence[Match]) -> str:
    compare = results.compare or CompareRecord()
    parts = stretches(matches)
    seen = " (one seed: how far seeds differ was not measured)" if all(match.one_seed for match in matches) else ""
    if len(parts) == 1:
        several = " at every budget" if len(matches) > 1 else f" {_at(results, matches[0])}"
        words = f"{_who(results, parts[0])}{several}"
    else:
        words = _who(results, parts[0])
        for before, after in pairwise(parts):
            where = crossing(results, before, after)
            if where is not None:
                place = _place(compare, where, matches[0].budget)
                words += f" until about {place}, from there on {_named(results, after)}"
                continue
            if before is parts[0]:
                words += f" up to “{_budget(compare, before.matches[-1].budget)}”"
            words += f", from “{_budget(compare, after.matches[0].budget)}” on {_who(results, after)}"
    ends = [matches[0], matches[-1]] if len(matches) > 1 else matches
    metric = quantities.shorten((results.task or TaskInfo()).primary_metric, 30)
    scores = "; ".join(f"{_scores(results, match)} {_at(results, match)}" for match in ends)
    sentence = f"{words}{seen} ({metric}: {scores})."
    return "T" + sentence[1:] if sentence.startswith("the ") else sentence


def _who(results: Results, stretch: Stretch) -> str:
    names = _named(results, stretch)
    return f"{names} leads" if len(stretch.who) == 1 else f"{names} are level"


def _named(results: Results, stretch: Stretch) -> str:
    return " and ".join(subject(results, model) for model in stretch.who)


def _scores(results: Results, match: Match) -> str:
    ours, theirs = quantities.score(match.row.mean), quantities.score(match.parent.mean)
    return f"{subject(results, match.row.model)} {ours}, {quantities.shorten(match.parent.model, 40)} {theirs}"


def _at(results: Results, match: Match) -> str:
    return budget_words(results, match.budget)


def _budget(compare: CompareRecord, budget: int) -> str:
    return quantities.shorten(compare.budgets[budget].name, 60)


def _place(compare: CompareRecord, flops: float, budget: int) -> str:
    """A place between two budgets, as FLOPs and as a share of the fine-tuning budget."""
    main = compare.budgets[compare.main_budget]
    total = main.flops / main.share if main.flops and main.share else None
    if total is None or compare.budgets[budget].is_everything:
        return quantities.flops(flops)
    return f"{quantities.flops(flops)} ({flops / total:.2g} of the fine-tuning budget)"
