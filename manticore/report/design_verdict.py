"""What an architecture search shows, in words: is its best design better than the best baseline, and what did it cost.

Never kinder than the numbers: the best of many is picked for its luck too, a baseline that was found again is that
baseline, and what one seed shows is seen, not proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manticore import quantities
from manticore.report.design_noise import Gap, gap, noise
from manticore.report.design_record import Baseline, Study, Trained, Trial
from manticore.report.matches import Standing
from manticore.report.measure_words import name, said, words
from manticore.search.designs.scores import Goal, dominates

EQUAL = 0.01
"""Trainings whose tokens differ by no more than this share are equal."""


@dataclass(frozen=True)
class Verdict:
    standing: Standing
    label: str
    sentence: str


def verdict(study: Study) -> Verdict:
    """What was found, with its numbers and its price."""
    best = study.best
    if best is None:
        return Verdict(Standing.UNKNOWN, Standing.UNKNOWN.value, _nothing(study))
    goal = study.goals[0]
    value = said(goal.measure, best.measures[goal.measure])
    who = study.called(best)
    baseline = rival(study)
    if baseline is None:
        sentence = (
            f"The best design by {name(goal.measure)}, {who}, has {value}; no baseline has a score, so it cannot be "
            "said whether the search has found anything."
        )
        return Verdict(Standing.UNKNOWN, Standing.UNKNOWN.value, sentence + _spent(study, best))
    parts = [_beside(study, best, baseline), _over_the_limit(study, best), _price(best, baseline)]
    parts += [_dominated(study), _savings(study, baseline), _spent(study, best)]
    standing = outcome(study, best, baseline)
    label = standing.value if len(study.goals) == 1 else f"by {name(goal.measure)}: {standing.value}"
    if best.layers == baseline.layers:
        label = "a baseline is as good"
    sentence = "".join(parts).strip()
    return Verdict(standing, label, sentence[0].upper() + sentence[1:] if sentence.startswith("design ") else sentence)


def rival(study: Study) -> Baseline | None:
    """The best baseline by the first objective, of those that keep the limits where some do."""
    fair = [baseline for baseline in study.rivals if study.allows(baseline)] or study.rivals
    return min(fair, key=lambda baseline: baseline.point(study.goals), default=None)


def outcome(study: Study, best: Trained, baseline: Trained) -> Standing:
    """By the first objective; not known where the two were not trained alike."""
    if best.layers == baseline.layers:
        return Standing.PARENT
    if not equally_trained(best, baseline) and not words(study.goals[0].measure).exact:
        return Standing.UNKNOWN
    return gap(study, study.goals[0], best, baseline).standing


def equally_trained(one: Trained, other: Trained) -> bool:
    """Whether both saw as many tokens; where that is not recorded, the study's one setting holds."""
    if one.tokens is None or other.tokens is None:
        return True
    return abs(one.tokens - other.tokens) <= EQUAL * max(one.tokens, other.tokens)


def _beats(study: Study, one: Trained, other: Trained) -> bool:
    return dominates(one.point(study.goals), other.point(study.goals))


def _nothing(study: Study) -> str:
    failed = sum(bool(trial.failed) for trial in study.trials)
    if study.scored:
        return (
            f"None of the {len(study.scored):,} designs that have scores keeps the limits: nothing was found."
            + _spent(study, None)
        )
    why = f"{failed:,} failed" if failed else "they were stopped early, or lack a measure"
    return f"None of the {len(study.trials):,} designs has scores ({why}): nothing was found." + _spent(study, None)


def _beside(study: Study, best: Trial, baseline: Baseline) -> str:
    goal = study.goals[0]
    who, other = study.called(best), quantities.shorten(baseline.name, 40)
    if best.layers == baseline.layers:
        return f"The best design by {name(goal.measure)}, {who}, is the baseline {other} itself."
    ours, theirs = (said(goal.measure, entry.measures[goal.measure]) for entry in (best, baseline))
    both = f"{name(goal.measure)} {ours} against {theirs}"
    if not equally_trained(best, baseline) and not words(goal.measure).exact:
        return (
            f"{who} and the best baseline, {other}, were not trained alike ({quantities.count(best.tokens)} and "
            f"{quantities.count(baseline.tokens)} tokens), so it cannot be said which is better ({both})."
        )
    found = gap(study, goal, best, baseline)
    size = said(goal.measure, abs(found.size))
    equal = f" after the same {quantities.count(best.tokens)} tokens" if best.tokens and baseline.tokens else ""
    phrase = {
        Standing.BETTER: f"beats the best baseline, {other}, by {size}",
        Standing.WORSE: f"loses to the best baseline, {other}, by {size}",
        Standing.NOISE: f"is within noise of the best baseline, {other}," if found.reach else f"is level with {other}",
        Standing.SEEN_BETTER: f"was seen {size} ahead of the best baseline, {other},",
        Standing.SEEN_WORSE: f"was seen {size} behind the best baseline, {other},",
        Standing.SEEN_LEVEL: f"scored the same as the best baseline, {other},",
    }[found.standing]
    return f"{who}, the best of {len(study.ranked):,}, {phrase}{equal} ({both}){_how_sure(study, goal, found)}."


def _how_sure(study: Study, goal: Goal, found: Gap) -> str:
    if words(goal.measure).exact:
        return ""
    if found.reach is None and not words(goal.measure).trained:
        return "; measured on one machine, and how far measurements differ is not known"
    if found.reach is None:
        return "; with one seed each, how far seeds differ was not measured"
    measured = noise(study, goal)
    moved = "" if measured is None else f"; one training's seed moves it by {said(goal.measure, measured.deviation)}"
    luck = f"by luck alone the best of {len(study.ranked):,} leads by up to {said(goal.measure, found.reach)}"
    return f"{moved}, and {luck}"


def _over_the_limit(study: Study, best: Trial) -> str:
    """A baseline that breaks a limit and scores better all the same."""
    goals = study.goals[:1]
    ahead = [each for each in study.rivals if not study.allows(each) and each.point(goals) < best.point(goals)]
    if not ahead or rival(study) in ahead:
        return ""
    other = min(ahead, key=lambda each: each.point(goals))
    value = said(goals[0].measure, other.measures[goals[0].measure])
    return f" {quantities.shorten(other.name, 40)}, which is over a limit, has {value}."


def _price(best: Trial, baseline: Baseline) -> str:
    """What the best design costs beside the baseline, by all that was measured of both."""
    if best.layers == baseline.layers:
        return ""
    found = []
    for measure, value in best.measures.items():
        other, what = baseline.measures.get(measure), words(measure).price
        if what and value is not None and other and value != other:
            ratio = value / other
            found.append(f"{ratio:.2f} times the {what}" if ratio >= 0.1 else f"{ratio:.2g} times the {what}")
    return f" It has {_listed(found)} of {quantities.shorten(baseline.name, 40)}." if found else ""


def _dominated(study: Study) -> str:
    """How many baselines the front dominates, and the other way round."""
    if len(study.goals) < 2:
        return ""
    front = [trial for design in study.front if (trial := study.by_design[design]).is_scored(study.goals)]
    beaten = [each for each in study.rivals if any(_beats(study, trial, each) for trial in front)]
    lost = [trial for trial in front if any(_beats(study, each, trial) for each in study.rivals)]
    rivals = f"{len(study.rivals)} baseline{'s' * (len(study.rivals) > 1)}"
    sentence = (
        f" By the means of all objectives, designs of the front dominate {len(beaten)} of {rivals}"
        f"{', and baselines dominate ' if lost else ''}"
    )
    return f"{sentence}{f'{len(lost)} of the {len(front)} designs on the front' if lost else ''}."


def _savings(study: Study, baseline: Baseline) -> str:
    """By every further objective, the best of the designs that are no worse than the baseline by the first."""
    level = [t for t in study.ranked if t.point(study.goals)[0] <= baseline.point(study.goals)[0]]
    sentences = []
    for goal in study.goals[1:]:
        best = min(level, key=lambda trial: trial.point([goal]), default=None)
        if best is None or best.point([goal]) >= baseline.point([goal]):
            continue
        ours, theirs = (said(goal.measure, entry.measures[goal.measure]) for entry in (best, baseline))
        sentences.append(f"{study.called(best)} has {name(goal.measure)} {ours} against {theirs}")
    if not sentences:
        return ""
    first = name(study.goals[0].measure)
    return f" With no worse {first} than {quantities.shorten(baseline.name, 40)}, {_listed(sentences)}."


def _spent(study: Study, best: Trial | None) -> str:
    """What the search cost, in trainings of its best design."""
    if study.spent is None:
        return ""
    times = f", {study.spent / best.flops:.0f} times the training of its best design" if best and best.flops else ""
    taken_over = sum(trial.flops or 0 for trial in study.trials if trial.taken_over)
    before = f", of which another study had spent {quantities.flops(taken_over)}" if taken_over else ""
    return f" The search cost {quantities.flops(study.spent)}{times}{before}."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
