"""Pictures of a study's scores: designs over pairs of objectives, the best so far, the hypervolume, learning curves.

Designs of the front are numbered as in the table and have their layers beside them as a strip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, combinations
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator
from matplotlib.transforms import Bbox

from manticore import quantities
from manticore.experiments.hypervolume import front_of
from manticore.report.block_picture import WIDTH
from manticore.report.design_growth import Growth
from manticore.report.design_record import Baseline, Study, Trained, Trial
from manticore.report.layer_picture import Look, strip_box
from manticore.report.measure_words import direction, name, words
from manticore.report.palette import COMPONENTS, CROWD, FAINT, INK, MARKS, MUTED, component_colour, component_dashes
from manticore.search.designs.scores import Goal

_Place: TypeAlias = tuple[float, float]
_MOST_DOTS = 1500
"""In one panel; more cannot be told from each other, and would only make the page heavy."""
_MOST_STRIPS = 12
_WIDE = 40
"""A cost that is so many times another's would leave the small ones on each other: then the axis is in doublings."""
_MOST_BASELINES = 12
_MOST_CURVES = 6
_MOST_POINTS = 100
_PLACES = (9.0, -9.0, 17.0, -17.0, 27.0, -27.0, 39.0, -39.0)
"""Heights of a label over its point, in points, in the order in which they are tried."""


def front_figure(study: Study, drawn: dict[str, Look]) -> Figure | None:
    """Every pair of objectives as a panel; None where there is one objective, or nothing has scores."""
    pairs = list(combinations(study.goals, 2))
    if not pairs or not study.scored:
        return None
    columns = 1 if len(pairs) == 1 else 2
    lines = math.ceil(len(pairs) / columns)
    high = 4.6 if columns == 1 else 3.9 * lines
    figure = Figure(figsize=(WIDTH, high + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    numbered = ranked_front(study)
    for ax, (first, second) in zip(grid, pairs):
        # the first objective upwards, as quality over cost is drawn
        _pair(ax, study, second, first, numbered)
    for ax in grid[len(pairs) :]:
        ax.set_visible(False)
    if study.rivals:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4)
    figure.draw_without_rendering()
    # labels move the axes no more from here on
    figure.set_layout_engine("none")
    for ax, (first, second) in zip(grid, pairs):
        marks = [_at(baseline, second, first) for baseline in study.rivals]
        _label_front(ax, [(number, t, _at(t, second, first)) for number, t in numbered], drawn, marks)
    return figure


def best_so_far_figure(study: Study, drawn: dict[str, Look]) -> Figure | None:
    """Of one objective: every trial's score in the order of the trials, and the best within the limits until then."""
    if len(study.goals) != 1 or not study.ranked:
        return None
    goal = study.goals[0]
    places = {trial.design: place for place, trial in enumerate(study.trials, 1)}
    points = [(places[trial.design], trial.measures[goal.measure] or 0.0) for trial in study.scored]
    kept = sorted((places[trial.design], trial.measures[goal.measure] or 0.0) for trial in study.ranked)
    best = list(accumulate((y for _, y in kept), max if goal.maximise else min))
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    ax = figure.subplots()
    _dots(ax, points)
    xs = [*(x for x, _ in kept), len(study.trials)]
    ax.step(xs, [*best, best[-1]], where="post", color=INK, label="best so far")
    for place, baseline in enumerate(study.rivals[:_MOST_BASELINES]):
        colour, dashes = component_colour(place), component_dashes(place + 1)
        label = quantities.shorten(baseline.name, 30)
        ax.axhline(baseline.measures[goal.measure] or 0.0, color=colour, linestyle=dashes, label=label, linewidth=1.2)
    _score_axis(ax.yaxis, goal)
    ax.set_ylabel(f"{name(goal.measure)} ({direction(goal)})")
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.legend(loc="outside upper left", ncols=4)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    numbered = [
        (number, trial, (float(places[trial.design]), trial.measures[goal.measure] or 0.0))
        for number, trial in enumerate(study.ranked[:3], 1)
    ]
    ax.plot([at[0] for _, _, at in numbered], [at[1] for _, _, at in numbered], "o", color=INK, markersize=5)
    _label_front(ax, numbered, drawn)
    return figure


def hypervolume_figure(growth: Growth) -> Figure:
    """The hypervolume after each generation."""
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    ax = figure.subplots()
    xs = growth.places
    mark = "o" if len(growth.everything) <= 40 else None
    ax.plot(xs, growth.everything, color=INK, marker=mark, markersize=4, label="all designs so far")
    if growth.populations is not None:
        dashes = component_dashes(1)
        ax.plot(xs, growth.populations, color=COMPONENTS[0], linestyle=dashes, label="the population alone")
        figure.legend(loc="outside upper left", ncols=2)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(growth.unit)
    ax.set_ylabel("hypervolume")
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def curves_figure(study: Study) -> Figure | None:
    """Held-out loss over tokens: the best designs and the baselines; None where nobody has a curve."""
    best = [trial for _, trial in ranked_front(study)] if len(study.goals) > 1 else []
    best = best or study.ranked
    best = [trial for trial in best if trial.points][:_MOST_CURVES]
    others = [baseline for baseline in study.baselines if baseline.points][:_MOST_BASELINES]
    if not best and not others:
        return None
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    ax = figure.subplots()
    for place, trial in enumerate(best):
        colour = INK if place == 0 else component_colour(place - 1)
        label = quantities.shorten(trial.design, 26) + (" (the best)" if place == 0 else "")
        _curve(ax, trial, color=colour, linewidth=2.2 if place == 0 else 1.4, label=label, zorder=4)
    for place, baseline in enumerate(others):
        dashes, mark = component_dashes(place % 3 + 1), MARKS[place % len(MARKS)]
        label = quantities.shorten(baseline.name, 26)
        _curve(ax, baseline, color=MUTED, linestyle=dashes, marker=mark, markersize=3.5, linewidth=1.2, label=label)
    ends = sorted(points[-1][1] for entry in (*best, *others) if (points := entry.points))
    highest = max(max(loss for _, loss in entry.points[len(entry.points) // 4 :]) for entry in (*best, *others))
    lowest = min(loss for entry in (*best, *others) for _, loss in entry.points)
    if highest > ends[-1]:
        # the beginning of training is far above all that tells designs apart
        ax.set_ylim(lowest - 0.04 * (highest - lowest), highest + 0.04 * (highest - lowest))
    ax.set_xlabel("tokens of training")
    ax.set_ylabel("held-out loss (lower is better)")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantities.count(x)))
    ax.yaxis.set_major_locator(MaxNLocator(6))
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def ranked_front(study: Study) -> list[tuple[int, Trial]]:
    """The designs of the front that were trained to the end, each with its rank among all by the first objective."""
    front = set(study.front)
    return [(rank, trial) for rank, trial in enumerate(study.ranked, 1) if trial.design in front]


def _pair(ax: Axes, study: Study, across: Goal, up: Goal, numbered: Sequence[tuple[int, Trial]]) -> None:
    front = {trial.design for _, trial in numbered}
    _dots(ax, [_at(trial, across, up) for trial in study.scored if trial.design not in front])
    marks = [_at(trial, across, up) for _, trial in numbered]
    if len(study.goals) == 2:
        ax.step(*_staircase(marks, across, up), where="post", color=FAINT, linewidth=1.4, zorder=2)
    ax.plot([x for x, _ in marks], [y for _, y in marks], "o", color=INK, markersize=5, zorder=4)
    for place, baseline in enumerate(study.rivals[:_MOST_BASELINES]):
        x, y = _at(baseline, across, up)
        colour, mark = component_colour(place), MARKS[(place + place // 6) % len(MARKS)]
        label = quantities.shorten(baseline.name, 30)
        ax.plot(x, y, mark, color=colour, markersize=7, zorder=5, label=label, markeredgecolor="white")
    ax.set_xlabel(f"{name(across.measure)} ({direction(across)})")
    ax.set_ylabel(f"{name(up.measure)} ({direction(up)})")
    ax.margins(0.13, 0.16)
    everything = [_at(entry, across, up) for entry in (*study.scored, *study.rivals)]
    for goal, values, scaled in zip((across, up), zip(*everything), (ax.set_xscale, ax.set_yscale)):
        if words(goal.measure).price and min(values) > 0 and max(values) > _WIDE * min(values):
            scaled("log", base=2)
    # room for a strip under the lowest and over the highest point is part of what ticks span
    for axis, goal, limits in ((ax.xaxis, across, ax.get_xlim()), (ax.yaxis, up, ax.get_ylim())):
        _score_axis(axis, goal)
        axis.set_view_interval(*limits, ignore=True)


def _at(entry: Trained, across: Goal, up: Goal) -> tuple[float, float]:
    return entry.measures[across.measure] or 0.0, entry.measures[up.measure] or 0.0


def _staircase(marks: list[tuple[float, float]], across: Goal, up: Goal) -> tuple[list[float], list[float]]:
    """Along the front: as far as designs dominate."""
    sides = (-1 if across.maximise else 1, -1 if up.maximise else 1)
    points = front_of((x * sides[0], y * sides[1]) for x, y in marks)
    return [x * sides[0] for x, _ in points], [y * sides[1] for _, y in points]


def _dots(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    distinct = list(dict.fromkeys(points))
    shown = distinct[:: max(1, math.ceil(len(distinct) / _MOST_DOTS))]
    ax.plot([x for x, _ in shown], [y for _, y in shown], "o", color=CROWD, markersize=3.5, zorder=1, alpha=0.85)


def _score_axis(axis: Axis, goal: Goal) -> None:
    said = words(goal.measure).said
    is_log, ticks = axis.get_scale() == "log", MaxNLocator(6)
    axis.set_major_locator(LogLocator(2, numticks=8) if is_log else ticks)
    if goal.measure.endswith("bytes") and not is_log:
        low, high = axis.get_view_interval()
        # round numbers of KiB or MiB, not of bytes
        size = 1024 ** int(math.log(max(high, 1), 1024))
        marks = [mark for mark in ticks.tick_values(low / size, high / size) if mark >= 0]
        axis.set_major_locator(FixedLocator([mark * size for mark in marks]))
    if words(goal.measure).price:
        axis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))


def _curve(ax: Axes, entry: Trained | Baseline, **style: object) -> None:
    points = sorted(entry.points)
    points = points[:: max(1, math.ceil(len(points) / _MOST_POINTS))] + points[-1:]
    marks = {"markevery": max(1, len(points) // 6)} if "marker" in style else {}
    ax.plot([x for x, _ in points], [y for _, y in points], **style, **marks)  # type: ignore[arg-type]


def _label_front(
    ax: Axes,
    numbered: Sequence[tuple[int, Trial, _Place]],
    drawn: dict[str, Look],
    marks: Sequence[_Place] = (),
) -> None:
    """Number and strip beside each point, where they lie on no other; points that find no room have none.

    Args:
        ax: with its limits.
        numbered: the points, with their numbers and designs.
        drawn: how layers are drawn.
        marks: what else must not be covered.
    """
    to_data = ax.transData.inverted()
    points = [ax.transData.transform(at) for at in [*(at for _, _, at in numbered), *marks]]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points]
    frame = ax.bbox
    step = max(1, math.ceil(len(numbered) / _MOST_STRIPS))
    for number, trial, at in numbered[::step]:
        box = strip_box(trial.layers, drawn)
        wide = box.width * ax.figure.dpi / 72
        for dy in _PLACES:
            x, y = ax.transData.transform(at)
            x, y = min(max(x, frame.x0 + wide / 2 + 12), frame.x1 - wide / 2), y + dy * ax.figure.dpi / 72
            own = Bbox.from_bounds(x - wide / 2 - 14, y - 5, wide + 16, 10)
            if frame.y0 <= own.y0 and own.y1 <= frame.y1 and not any(own.overlaps(other) for other in taken):
                taken.append(own)
                (across, up), (left, _) = to_data.transform([(x, y), (x - wide / 2 - 3, y)])
                ax.add_artist(AnnotationBbox(box, (across, up), frameon=False, pad=0, zorder=6))
                ax.text(left, up, str(number), ha="right", va="center", fontsize=7.5, color=INK, zorder=6)
                if abs(dy) > 10:
                    ax.plot([at[0], across], [at[1], up], color=MUTED, linewidth=0.5, zorder=3)
                break
