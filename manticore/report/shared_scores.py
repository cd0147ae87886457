"""Paths that were scored with weights that they share: by one-shot search, or after mixture weights were learned.

Where weights were learned, the path of the largest ones goes on whatever the others score; a reader must know when
another is better, and when none of them is any good.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from manticore import quantities
from manticore.report.candidates import is_parent, last, metric_name, place
from manticore.report.naming import path_words
from manticore.report.results import Results
from manticore.stages.combine import TaskInfo
from manticore.stages.search import CandidateRecord, CurvePoint, SearchRecord


@dataclass(frozen=True)
class SharedLine:
    """A path as tables show it."""

    path: tuple[int, ...]
    name: str
    loss: str
    metric: str
    before: str
    """The metric of a parent before the search; empty for others."""
    standing: str
    chosen: bool


def shared_title(results: Results) -> str:
    """The heading of the table."""
    learned = results.search is not None and results.search.learned
    return "One-hot paths of the supernet" if learned else "Paths with shared weights"


def shared_lines(results: Results, most: int) -> list[SharedLine]:
    """The rows of the table, the best first.

    Args:
        results: with the search.
        most: as many, the first ones; the path that was found is among them in any case.
    """
    search = results.search or SearchRecord()
    order = sorted(search.shared, key=lambda each: place(search, each))
    found = [each for each in order[most:] if each.path == search.path]
    shown = [*order[: most - len(found)], *found]
    return [_line(results, search, each, best=each is order[0]) for each in shown]


def _line(results: Results, search: SearchRecord, each: CandidateRecord, *, best: bool) -> SharedLine:
    end, start = last(each) or CurvePoint(), _before(each)
    found = each.path == search.path
    said = {
        "largest mixture weights" if search.learned else "found": found,
        "best": best and not each.failed,
        "parent": is_parent(results, each),
        f"failed: {quantities.shorten(each.failed, 120)}": bool(each.failed),
    }
    scores = (quantities.MISSING,) * 2 if each.failed else (quantities.score(end.loss), quantities.score(end.metric))
    return SharedLine(
        path=each.path,
        name=path_words(results, each.path),
        loss=scores[0],
        metric=scores[1],
        before="" if start is None else quantities.score(start.metric),
        standing=", ".join(word for word, holds in said.items() if holds),
        chosen=found,
    )


def how_scored(results: Results) -> str:
    """What was scored and on what, in a sentence; empty where nothing was."""
    search = results.search or SearchRecord()
    if not search.shared:
        return ""
    method = quantities.shorten(search.method, 30) or "the search"
    on = f"{search.shared_examples} held-out examples" if search.shared_examples else "held-out examples"
    if not search.learned:
        return f"{len(search.shared)} paths were scored on {on} with the weights that they share in {method}."
    return (
        f"After {method} had learned the mixture weights, {len(search.shared)} one-hot paths were scored on {on} with "
        "the supernet's weights, parents also before it. The path found is that of the largest mixture weights, "
        "whatever it scores."
    )


def one_hot_warning(results: Results) -> list[str]:
    """A sentence where mixture weights that were learned do not name the best path, or where no path is any good."""
    search = results.search or SearchRecord()
    if not search.learned:
        return []
    ends = [each for each in search.shared if not each.failed and last(each) is not None]
    best = min(ends, key=lambda each: place(search, each), default=None)
    if best is None:
        return []
    wrong = _wrong(results, search, best, len(ends))
    if best.path == search.path or not search.path:
        return [f"{wrong[0].upper()}{wrong[1:]}."] if wrong else []
    scores = [quantities.score(_metric(each)) for each in ends if each.path == best.path]
    scores += [quantities.score(_metric(each)) for each in ends if each.path == search.path]
    numbers = f" ({quantities.shorten(metric_name(results), 30)} {' against '.join(scores)})"
    return [
        f"The largest mixture weights are those of {path_words(results, search.path)}, but "
        f"{path_words(results, best.path)} scores best on held-out data{numbers}{f', and {wrong}' if wrong else ''}."
    ]


def _wrong(results: Results, search: SearchRecord, best: CandidateRecord, number: int) -> str:
    """That the best path is no better than chance, or than a parent before the search; empty where it is."""
    task, score = results.task or TaskInfo(), _metric(best)
    none = f"none of the {number} one-hot paths is better than"
    if score is None:
        return ""
    sign = 1 if search.higher_is_better else -1
    chance = task.chance if metric_name(results) == task.primary_metric else None
    if chance is not None and sign * (score - chance) <= _noise(search, chance):
        return f"{none} chance ({quantities.score(chance)})"
    before = [(start, each) for each in search.shared if (start := _before(each)) and start.metric is not None]
    rank: Callable[[CurvePoint], tuple[float, float]] = lambda point: (  # noqa: E731
        -sign * (point.metric or 0.0),
        math.inf if point.loss is None else point.loss,
    )
    if not before:
        return ""
    start, parent = min(before, key=lambda found: rank(found[0]))
    end = last(best)
    if end is not None and rank(end) >= rank(start):
        return f"{none} {path_words(results, parent.path)} was before the search ({quantities.score(start.metric)})"
    return ""


def _noise(search: SearchRecord, chance: float) -> float:
    """Two standard errors of an accuracy that is at chance; 0 for what is no share of so many examples."""
    share = search.higher_is_better and 0 < chance < 1 and search.shared_examples
    return 2 * math.sqrt(chance * (1 - chance) / search.shared_examples) if share and search.shared_examples else 0.0


def _metric(candidate: CandidateRecord) -> float | None:
    end = last(candidate)
    return None if end is None else end.metric


def _before(candidate: CandidateRecord) -> CurvePoint | None:
    """A parent as it was before a search that trained the supernet."""
    early = [point for point in candidate.points if point.mark == 0 and point.steps == 0]
    trained = any(point.steps > 0 for point in candidate.points) or bool(candidate.failed)
    return early[0] if early and trained else None
