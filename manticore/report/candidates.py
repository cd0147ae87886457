"""The candidates of a search: how far each came, which was chosen and why, and what all of them have cost.

A unit is the training FLOPs of one fine-tuning. K components, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from manticore import quantities
from manticore.report.naming import path_words
from manticore.report.results import Results
from manticore.search.curves import MARKS, trained_for
from manticore.stages.combine import TaskInfo
from manticore.stages.search import CandidateRecord, CurvePoint, SearchRecord

MOST_COUNTED = 1_000_000
"""Of more paths it is not said how many there are."""


@dataclass(frozen=True)
class Line:
    """A candidate as tables show it."""

    path: tuple[int, ...]
    name: str
    loss: str
    metric: str
    trained: str
    """In units."""
    cost: str
    standing: str
    """What became of it; empty for one that was looked at and not chosen."""
    chosen: bool


@dataclass(frozen=True)
class Share:
    """A part of what a search has spent."""

    what: str
    flops: float
    units: str


def curve(candidate: CandidateRecord) -> list[CurvePoint]:
    """Its points by mark, each mark once."""
    return [point for _, point in sorted({point.mark: point for point in candidate.points}.items())]


def last(candidate: CandidateRecord) -> CurvePoint | None:
    """How far it came."""
    return max(candidate.points, key=lambda point: (point.mark, point.steps), default=None)


def is_parent(results: Results, candidate: CandidateRecord) -> bool:
    """Whether it is one pretrained component throughout."""
    return len(set(candidate.path)) == 1 and candidate.path[0] not in results.fresh


def ranked(search: SearchRecord) -> list[CandidateRecord]:
    """The chosen one, then those that came farthest, the best first; those that failed last."""
    return sorted(search.candidates, key=lambda candidate: (not candidate.chosen, *place(search, candidate)))


def place(search: SearchRecord, candidate: CandidateRecord) -> tuple[bool, int, float, float, tuple[int, ...]]:
    """What candidates are ordered by, whichever was chosen."""
    end = last(candidate) or CurvePoint(mark=-1)
    metric = math.inf if end.metric is None else end.metric * (-1 if search.higher_is_better else 1)
    return bool(candidate.failed), -end.mark, metric, math.inf if end.loss is None else end.loss, candidate.path


def metric_name(results: Results) -> str:
    """The metric of the curves."""
    found = results.search.metric if results.search else ""
    return found or (results.task or TaskInfo()).primary_metric


def lines(results: Results, most: int) -> list[Line]:
    """The rows of the table of candidates.

    Args:
        results: with the search.
        most: as many, the first ones.
    """
    search = results.search or SearchRecord()
    found = []
    for candidate in ranked(search)[:most]:
        end = last(candidate) or CurvePoint()
        said = [
            word for word, holds in (("chosen", candidate.chosen), ("parent", is_parent(results, candidate))) if holds
        ]
        said += [f"failed: {quantities.shorten(candidate.failed, 120)}"] if candidate.failed else []
        found.append(
            Line(
                path=candidate.path,
                name=path_words(results, candidate.path),
                loss=quantities.score(end.loss),
                metric=quantities.score(end.metric),
                trained=f"{end.mark / MARKS:.2f}",
                cost=quantities.flops(candidate.flops),
                standing=", ".join(said),
                chosen=candidate.chosen,
            )
        )
    return found


def units(search: SearchRecord, flops: float) -> str:
    """FLOPs in units; an n-dash where the record does not say what a unit is."""
    return f"{flops / search.unit_flops:.2f}" if search.unit_flops and search.unit_flops > 0 else quantities.MISSING


def spent(results: Results) -> list[Share]:
    """What the search has spent, part by part, and in all at the end; empty where it trained no candidates."""
    search = results.search or SearchRecord()
    if not search.candidates:
        return []
    trained = [(end.flops or 0.0) if (end := last(candidate)) else 0.0 for candidate in search.candidates]
    parts = {
        "training of the path found": sum(f for f, each in zip(trained, search.candidates) if each.chosen),
        "training of the others": sum(f for f, each in zip(trained, search.candidates) if not each.chosen),
        "scoring on held-out data": sum(max(0.0, (c.flops or 0.0) - f) for f, c in zip(trained, search.candidates)),
    }
    known = sum(parts.values())
    total = known if search.flops is None else search.flops
    if total > 1.001 * known:
        parts["weights that all paths share"] = total - known
    parts["all of the search"] = total
    return [Share(what, flops, units(search, flops)) for what, flops in parts.items()]


def how_found(results: Results) -> list[str]:
    """Sentences: what was looked at, what was chosen and why, what it cost; none where no candidate was trained."""
    search = results.search or SearchRecord()
    if not search.candidates:
        return []
    chosen = search.chosen
    looked = f"{len(search.candidates)} of {_number_of_paths(results)} paths"
    method = f"The search ({quantities.shorten(search.method, 30)})" if search.method else "The search"
    named = f" and chose {path_words(results, chosen.path)}" if chosen else ""
    why = f": {quantities.shorten(search.reason, 200)}" if search.reason else ""
    on = "each by itself"
    if search.task_options:
        options = ", ".join(f"{name}={value}" for name, value in search.task_options.items())
        on += f" and on a cheaper task of the same kind ({quantities.shorten(options, 80)})"
    did = "trained" if any(end.mark for each in search.candidates if (end := last(each))) else "trained none, looked at"
    said = [f"{method} {did} {looked}, {on}, scored them on held-out data{named}{why}."]
    *parts, total = spent(results)
    if search.unit_flops and search.unit_flops > 0:
        shares = ", ".join(f"{part.units} {part.what}" for part in parts if part.flops)
        unit, there = quantities.flops(search.unit_flops), " on that task" if search.task_options else ""
        said.append(f"It cost {total.units} units ({shares}); a unit is one fine-tuning{there}, {unit}.")
    else:
        said.append(f"It cost {quantities.flops(total.flops)}.")
    return said


def search_warnings(results: Results) -> list[str]:
    """What a reader must know of the search before believing its choice."""
    search = results.search or SearchRecord()
    failed = [candidate for candidate in search.candidates if candidate.failed]
    said = []
    if failed:
        reasons = "; ".join(dict.fromkeys(quantities.shorten(candidate.failed, 80) for candidate in failed[:3]))
        said.append(
            f"{len(failed)} of {len(search.candidates)} candidates failed ({reasons}); the search went on without them."
        )
    return said


def held_out(results: Results) -> str:
    """What the search saw of the path found beside the best parent, in a sentence; empty where it saw nothing."""
    search = results.search or SearchRecord()
    chosen = search.chosen
    end = last(chosen) if chosen else None
    if chosen is None or end is None or end.metric is None:
        return ""
    metric, where = quantities.shorten(metric_name(results), 30), trained_for(end.mark)
    rivals = list(_parents_at(results, search, end.mark))
    if is_parent(results, chosen) or not rivals:
        return f"On held-out data its {metric} was {quantities.score(end.metric)} {where}."
    score, parent = (max if search.higher_is_better else min)(rivals)
    lead = (end.metric - score) * (1 if search.higher_is_better else -1)
    how = "level with" if not lead else f"{quantities.score(abs(lead))} {'ahead of' if lead > 0 else 'behind'}"
    return (
        f"On held-out data it was {how} the best parent ({path_words(results, parent)}) {where} "
        f"({metric} {quantities.score(end.metric)} against {quantities.score(score)})."
    )


def _parents_at(results: Results, search: SearchRecord, mark: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    for candidate in search.candidates:
        for point in candidate.points:
            if (
                is_parent(results, candidate)
                and search.allows(candidate)
                and point.mark == mark
                and point.metric is not None
            ):
                yield point.metric, candidate.path


def barred(results: Results) -> set[str]:
    """Names of the parents that do not keep the limits of the search."""
    search, names = results.search or SearchRecord(), results.component_names
    return {names[each.path[0]] for each in search.candidates if is_parent(results, each) and not search.allows(each)}


def _number_of_paths(results: Results) -> str:
    k, n = results.num_components, results.num_blocks
    few = n * math.log(max(k, 1)) <= math.log(MOST_COUNTED) + 1e-9
    return f"{k**n:,}" if few else f"more than {MOST_COUNTED:,}"
