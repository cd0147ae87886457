"""The learning curves of a search's candidates: held-out loss and metric against units of training, a line per path.

The chosen path is drawn in ink (a parent in its component's colour) and thick, parents in their components' colours
and dashes. Few other paths have colours and marks of their own, many are one grey crowd. A cross ends a curve that
failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from manticore import quantities
from manticore.report.block_picture import WIDTH
from manticore.report.candidates import curve, is_parent, metric_name, ranked
from manticore.report.naming import path_words
from manticore.report.palette import COMPONENTS, CROWD, INK, MUTED, component_colour, component_dashes
from manticore.report.results import Results
from manticore.search.curves import MARKS
from manticore.stages.combine import TaskInfo
from manticore.stages.search import CandidateRecord, CurvePoint

_MOST_DRAWN = 64
"""More lines cannot be told from each other; the first of the table are drawn."""
_MOST_POINTS = 48
_OWN_COLOURS = 5
"""Up to so many paths that are neither chosen nor a parent are told apart."""
_MARKS = ("s", "^", "D", "v", "P")
_BEYOND = 1e6
"""No loss or metric that is this large is drawn: the others would lie on the axis."""


@dataclass(frozen=True)
class _Style:
    colour: str
    dashes: Any = "-"
    width: float = 1.4
    mark: str | None = None
    size: float = 3.5
    front: int = 3


def candidates_figure(results: Results) -> Figure | None:
    """Held-out loss, and the metric where it is another, by units; None where no candidate was trained."""
    search = results.search
    drawn = [c for c in ranked(search) if any(_is_trained(p) for p in c.points)][:_MOST_DRAWN] if search else []
    metric, task = metric_name(results), results.task or TaskInfo()
    panels: list[tuple[str, Callable[[CurvePoint], float | None]]] = [("loss (lower is better)", lambda p: p.loss)]
    if metric != "loss" and any(point.metric is not None for each in drawn for point in each.points):
        better = "higher" if search is None or search.higher_is_better else "lower"
        panels.append((f"{quantities.shorten(metric, 30)} ({better} is better)", lambda p: p.metric))
    if not drawn or search is None:
        return None
    styles = _styles(results, drawn)
    entries = _entries(results, drawn, styles)
    rows = math.ceil(len(entries) / _columns(entries))
    figure = Figure(figsize=(WIDTH, 2.75 + 0.2 * rows), layout="constrained")
    for ax, (title, value) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for candidate, style in zip(drawn, styles):
            _line(ax, candidate, style, value)
        ax.set_title(f"held-out {title}")
        ax.margins(x=0.03)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if title == panels[-1][0] and task.chance is not None and metric == task.primary_metric != "loss":
            ax.axhline(task.chance, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
            ax.annotate(
                "chance", (1, task.chance), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                textcoords="offset points", ha="right", fontsize=7.5, color=MUTED,
            )  # fmt: skip
    worth = f", 1 unit: {quantities.flops(search.unit_flops)}" if search.unit_flops else ""
    figure.supxlabel(f"training of each path (units of one fine-tuning{worth})", fontsize=8.5, color=MUTED)
    figure.legend(handles=entries, loc="outside upper left", ncols=_columns(entries))
    return figure


def _is_trained(point: CurvePoint) -> bool:
    return point.mark > 0 and (point.loss is not None or point.metric is not None)


def _styles(results: Results, drawn: list[CandidateRecord]) -> list[_Style]:
    others = [each for each in drawn if not each.chosen and not is_parent(results, each)]
    free = [colour for k, colour in enumerate(COMPONENTS) if k >= results.num_components]
    apart = len(others) <= min(_OWN_COLOURS, len(free) + 1)
    own = [_Style(colour, mark=mark) for colour, mark in zip([*free, MUTED], _MARKS)] if apart else []
    found = []
    for each in drawn:
        if is_parent(results, each):
            k = each.path[0]
            wide = 3.0 if each.chosen else 1.6
            dashes = "-" if each.chosen else component_dashes(k + 1)
            found.append(_Style(component_colour(k), dashes, wide, "o" if each.chosen else None, 5, 4 + each.chosen))
        elif each.chosen:
            found.append(_Style(INK, width=2.6, mark="o", size=5, front=6))
        else:
            found.append(own.pop(0) if own else _Style(CROWD, width=0.9, front=2))
    return found


def _entries(results: Results, drawn: list[CandidateRecord], styles: list[_Style]) -> list[Line2D]:
    """The legend: a line for each path that can be told apart, one for the crowd."""
    entries, crowd = [], 0
    for each, style in zip(drawn, styles):
        if style.colour == CROWD:
            crowd += 1
            continue
        name = quantities.shorten(path_words(results, each.path), 44) + (" (chosen)" if each.chosen else "")
        entries.append(_handle(style, name))
    if crowd:
        entries.append(_handle(_Style(CROWD, width=0.9), f"{crowd} other path{'s' if crowd > 1 else ''}"))
    return entries


def _handle(style: _Style, label: str) -> Line2D:
    return Line2D(
        [], [], color=style.colour, linestyle=style.dashes, linewidth=style.width, marker=style.mark,
        markersize=style.size, label=label,
    )  # fmt: skip


def _columns(entries: list[Line2D]) -> int:
    longest = max(len(str(entry.get_label())) for entry in entries)
    return max(1, min(len(entries), 4, 120 // (longest + 8)))


def _line(ax: Axes, candidate: CandidateRecord, style: _Style, value: Callable[[CurvePoint], float | None]) -> None:
    points = [(point.mark / MARKS, value(point)) for point in curve(candidate) if point.mark > 0]
    points = points[:: max(1, math.ceil(len(points) / _MOST_POINTS))] + points[-1:]
    ys = [math.nan if y is None or abs(y) > _BEYOND else y for _, y in points]
    xs = [x for x, _ in points]
    mark = style.mark or ("." if len(set(xs)) == 1 else None)
    ax.plot(
        xs, ys, color=style.colour, linestyle=style.dashes, linewidth=style.width, marker=mark,
        markersize=style.size, zorder=style.front,
    )  # fmt: skip
    ends = [(x, y) for (x, _), y in zip(points, ys) if not math.isnan(y)]
    if candidate.failed and ends:
        ax.plot(*ends[-1], "x", color=style.colour, markersize=7, markeredgewidth=2, zorder=style.front + 1)
