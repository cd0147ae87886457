"""The comparison over budgets: the metric against training FLOPs, a line per model, a panel per kind of budget.

Parents have their components' colours and dashes, what is discrete is ink, all else has colours and marks of its own. A
mark is a mean over seeds at a budget, an upright line its 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from manticore import quantities
from manticore.experiments.rows import HYBRID
from manticore.report.block_picture import WIDTH
from manticore.report.matches import score_row
from manticore.report.naming import model_name
from manticore.report.palette import COMPONENTS, INK, MARKS, MUTED, SOFT, component_colour, component_dashes
from manticore.report.results import Results
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import CompareRecord

_WIDE = 8
"""Where the largest budget is so many times the smallest, small ones would lie on each other: then x is in decades."""


@dataclass(frozen=True)
class LineStyle:
    """How a model's line is drawn."""

    colour: str
    dashes: Any = "-"
    mark: str = "o"
    width: float = 1.5


def budgets_figure(results: Results) -> Figure | None:
    """One panel per kind of budget; None where there are not several of one kind."""
    compare, task = results.compare, results.task or TaskInfo()
    if compare is None or not compare.over_budgets:
        return None
    styles = line_styles(results, compare.models)
    names = [quantities.shorten(model_name(results, model), 34) for model in compare.models]
    columns = max(1, min(len(names), 4, 110 // (max(map(len, names)) + 7)))
    lines = math.ceil(len(names) / columns)
    kinds = [kind for kind in compare.kinds if len(kind) > 1]
    figure = Figure(figsize=(WIDTH, 3.4 + 0.2 * lines), layout="constrained")
    for ax, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds):
        budgets = [compare.budgets[budget].flops or 0.0 for budget in kind]
        for model, name in zip(compare.models, names):
            _line(ax, compare, model, kind, styles[model], name)
        if task.chance is not None:
            ax.axhline(task.chance, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
        _flops_axis(ax, budgets)
        # a kind that counts what was spent before is told apart from the other
        ax.set_title("everything it cost" if compare.budgets[kind[0]].is_everything else "fine-tuning alone")
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.margins(x=0.04, y=0.08)
    better = "higher" if task.higher_is_better else "lower"
    figure.supylabel(f"{quantities.shorten(task.primary_metric, 30)} ({better} is better)", fontsize=8.5, color=MUTED)
    figure.supxlabel("training FLOPs of each model", fontsize=8.5, color=MUTED)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    return figure


def line_styles(results: Results, models: Sequence[str]) -> dict[str, LineStyle]:
    """Name of a model → its line, the same in every figure that is drawn of the same models."""
    names, own = results.component_names, iter(MARKS * len(models))
    parents = [model for model in models if model in names]
    used = {names.index(model) % len(COMPONENTS) for model in parents}
    free = iter([SOFT, *(c for k, c in enumerate(COMPONENTS) if k not in used)] * len(models))
    found = {}
    for model in dict.fromkeys(models):
        if model == HYBRID:
            found[model] = LineStyle(INK, width=2.2)
        elif model in names:
            found[model] = LineStyle(component_colour(names.index(model)), component_dashes(names.index(model) + 1))
        else:
            found[model] = LineStyle(next(free), mark=next(own))
    return found


def _line(ax: Axes, compare: CompareRecord, model: str, kind: list[int], style: LineStyle, name: str) -> None:
    rows = [(compare.budgets[b].flops or 0.0, score_row(compare, model, b)) for b in kind]
    points = [(x, row) for x, row in rows if row is not None and row.mean is not None]
    ax.plot(
        [x for x, _ in points], [row.mean or 0.0 for _, row in points], color=style.colour, linestyle=style.dashes,
        linewidth=style.width, marker=style.mark, markersize=4, clip_on=False, label=name,
        zorder=4 if model == HYBRID else 3,
    )  # fmt: skip
    for x, row in points:
        if row.bounds is not None:
            ax.plot([x, x], row.bounds, color=style.colour, linewidth=1, solid_capstyle="butt", zorder=2)


def _flops_axis(ax: Axes, budgets: list[float]) -> None:
    trained = [budget for budget in budgets if budget]
    if trained and max(trained) > _WIDE * min(trained):
        # linear below the smallest, so that no training at all has a place
        ax.set_xscale("symlog", linthresh=min(trained), linscale=0.5)
        ax.set_xlim(left=-0.05 * min(trained) if 0 in budgets else min(trained) * 0.8, right=max(trained) * 1.25)
        ax.xaxis.set_major_locator(FixedLocator(_apart(budgets, max(trained))))
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    # a new scale brings labels of its own
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantities.flops(x) if x else "0"))
    ax.tick_params(axis="x", labelrotation=20)


def _apart(budgets: list[float], largest: float) -> list[float]:
    """The budgets whose labels do not meet, the largest among them."""
    shown = [largest]
    for budget in sorted(budgets, reverse=True):
        if budget * 1.7 < shown[-1]:
            shown.append(budget)
    return shown[::-1]
