"""Tables of a study: the best designs with the baselines among them, motifs, failures, offspring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from manticore import quantities
from manticore.experiments.motifs import LinkKind, Motifs, Run, motifs
from manticore.report.design_growth import best_group
from manticore.report.design_noise import seeds
from manticore.report.design_record import Baseline, Study, Trained, Trial
from manticore.report.measure_words import in_order, said

MOST_ROWS = 24
_MOST_MOTIFS = 10
_MOST_REASONS = 12


@dataclass(frozen=True)
class Entry:
    """A row of the table of designs."""

    rank: str
    """Among all designs, by the first objective; of a baseline empty."""
    name: str
    entry: Trained
    is_baseline: bool
    cells: list[list[str]]
    """By measures: the value, and below it what belongs to it."""
    note: str
    """What else is to be known of it."""


@dataclass(frozen=True)
class MotifRow:
    """A motif, and the share of designs that hold it."""

    run: Run | None
    """Classes of neighbouring layers."""
    link: LinkKind | None
    shares: list[str]
    """Of the first and the last generation, of all designs and of the best."""
    lift: str
    """Over what shares of the classes alone would give, among the best."""


def measures_of(study: Study) -> list[str]:
    """The objectives first, then everything else that was measured."""
    goals = [goal.measure for goal in study.goals]
    others = [measure for entry in (*study.trials, *study.baselines) for measure in entry.measures]
    return list(dict.fromkeys([*goals, *in_order(list(dict.fromkeys(others)))]))


def table(study: Study, most: int = MOST_ROWS) -> list[Entry]:
    """The front, or the best by the one objective, with all baselines among them, the best first.

    Args:
        study: with its trials.
        most: designs at most.
    """
    ordered = study.ranked
    ranks = {trial.design: place for place, trial in enumerate(ordered, 1)}
    front = set(study.front)
    # several objectives: the front; one: the best
    chosen = [t for t in ordered if t.design in front] if len(study.goals) > 1 else ordered
    listed: list[Trained] = sorted([*chosen[:most], *study.rivals], key=lambda entry: entry.point(study.goals))
    listed += [baseline for baseline in study.baselines if baseline not in study.rivals]
    names = measures_of(study)
    return [_entry(study, entry, ranks, names) for entry in listed]


def motif_rows(study: Study) -> list[MotifRow]:
    """The motifs in which the best differ most from all, pairs and triples and links alike."""
    found = study.batches
    first, last = (motifs(trial.entries for trial in batch) for batch in (found[0], found[-1]))
    everything = motifs(trial.entries for trial in study.trials)
    best = motifs(trial.entries for trial in best_group(study)[1])
    counted: list[Run | LinkKind] = [*everything.pairs, *everything.triples, *everything.links]
    # one that only a single design holds says something of that design
    common = [motif for motif in counted if everything.holding[motif] > 1]
    common.sort(key=lambda motif: everything.share_holding(motif) - best.share_holding(motif))
    return [_motif(motif, first, last, everything, best) for motif in common[:_MOST_MOTIFS]]


def failures(study: Study) -> list[tuple[str, int, str]]:
    """Why candidates failed: the reason, how many, and one of them."""
    failed = [(trial.failed, trial.design) for trial in study.trials if trial.failed]
    failed += [(each.failed, each.name) for each in study.baselines if each.failed]
    examples = dict(reversed(failed))
    counted = Counter(reason for reason, _ in failed).most_common(_MOST_REASONS)
    short = quantities.shorten
    return [(short(reason, 200), number, short(examples[reason], 60)) for reason, number in counted]


def invalid_offspring(study: Study) -> str:
    """The share of offspring that was no design before it was repaired, in a sentence; empty where nothing was bred."""
    made, invalid = sum(each.made for each in study.trials), sum(each.invalid for each in study.trials)
    doubles = sum(each.duplicates for each in study.trials)
    if not made:
        return ""
    again = f" {doubles:,} {'was' if doubles == 1 else 'were'} known already, and scored once." if doubles else ""
    share = f"{invalid:,} of {made:,} offspring ({invalid / made:.0%})"
    return f"{share} were no legal designs and had to be repaired.{again}"


def _entry(study: Study, entry: Trained, ranks: dict[str, int], names: Sequence[str]) -> Entry:
    is_baseline = isinstance(entry, Baseline)
    name = entry.name if isinstance(entry, Baseline) else entry.design if isinstance(entry, Trial) else ""
    notes = [
        f"failed: {quantities.shorten(entry.failed, 60)}" if entry.failed else "",
        f"stopped after {quantities.count(entry.stopped)} tokens" if entry.stopped is not None else "",
        "" if entry.failed or study.allows(entry) else "over a limit",
    ]
    return Entry(
        "" if is_baseline else str(ranks.get(name, quantities.MISSING)),
        name,
        entry,
        is_baseline,
        [_cell(study, entry, measure) for measure in names],
        "; ".join(filter(None, notes)),
    )


def _cell(study: Study, entry: Trained, measure: str) -> list[str]:
    goal = next((goal for goal in study.goals if goal.measure == measure), None)
    values = seeds(entry, goal) if goal else []
    cell = [said(measure, entry.measures.get(measure))]
    if len(set(values)) > 1:
        cell.append(f"{len(values)} seeds: {said(measure, min(values))} to {said(measure, max(values))}")
    return cell


def _motif(motif: Run | LinkKind, first: Motifs, last: Motifs, everything: Motifs, best: Motifs) -> MotifRow:
    shares = [f"{counted.share_holding(motif):.0%}" for counted in (first, last, everything, best)]
    if isinstance(motif, LinkKind):
        return MotifRow(None, motif, shares, quantities.MISSING)
    lift = best.lift(motif)
    return MotifRow(motif, None, shares, quantities.MISSING if lift is None else f"{lift:.1f} ×")
