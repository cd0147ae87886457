"""What a reader must know before believing the numbers of a study."""

from __future__ import annotations

from manticore import quantities
from manticore.report.design_noise import noise
from manticore.report.design_record import Study
from manticore.report.design_verdict import equally_trained, rival
from manticore.report.measure_words import name, words


def cautions(study: Study) -> list[str]:
    """Sentences, most serious first."""
    found = []
    if study.unfinished:
        found.append("The study is unfinished: trials are missing, and the rest may be preliminary.")
    failed = sum(bool(trial.failed) for trial in study.trials)
    stopped = sum(trial.stopped is not None for trial in study.trials)
    if failed:
        found.append(f"{failed:,} of {len(study.trials):,} candidates failed.")
    if stopped:
        found.append(
            f"{stopped:,} candidates were stopped early and are not ranked: where they would end is not known."
        )
    if over := len(study.scored) - len(study.ranked):
        found.append(f"{over:,} designs are over a limit, and not ranked.")
    lost = [quantities.shorten(each.name, 40) for each in study.baselines if each not in study.rivals]
    if not study.baselines:
        found.append("No baseline was trained: the study cannot tell a good search from an easy space.")
    elif lost:
        found.append(f"Baselines without a score: {', '.join(lost)}.")
    uneven = [each.name for each in study.rivals if study.best and not equally_trained(study.best, each)]
    if uneven:
        names = ", ".join(quantities.shorten(each, 40) for each in uneven)
        found.append(f"Not trained for as many tokens as the best design: {names}.")
    trained = [goal for goal in study.goals if words(goal.measure).trained]
    single = [goal for goal in trained if noise(study, goal) is None]
    if single and study.ranked:
        what = " and ".join(name(goal.measure) for goal in single)
        found.append(
            f"Every {what} is of one training: how far seeds differ was not measured, and the best of "
            f"{len(study.ranked):,} is picked for its luck too. A fresh seed of it will on average be worse; "
            "repeats=2 or more would show by how much."
        )
    timed = [name(g.measure) for g in study.goals if not words(g.measure).exact and not words(g.measure).trained]
    if timed:
        found.append(f"Measured on one machine, which another would order otherwise: {', '.join(timed)}.")
    best, baseline = study.best, rival(study)
    if best and baseline and study.max and not study.allows(baseline):
        found.append("No baseline keeps the limits: the verdict compares with one that does not.")
    return found
