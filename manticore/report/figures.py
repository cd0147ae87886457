"""All figures of the report, drawn from ``results.json`` alone; a figure whose data is missing is left out.

K components, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from manticore import quantities
from manticore.report.block_picture import WIDTH, block_picture
from manticore.report.budget_curves import budgets_figure
from manticore.report.candidate_curves import candidates_figure
from manticore.report.matches import score_row
from manticore.report.naming import budget_name, model_name
from manticore.report.pages import Drawing
from manticore.report.palette import (
    FAINT,
    INK,
    MUTED,
    SOFT,
    component_colour,
    component_dashes,
    model_colour,
    tint,
)
from manticore.report.results import Results
from manticore.report.svg import house_style, to_svg
from manticore.report.text_picture import text_figure
from manticore.report.writing_curves import writing_figure
from manticore.stages.align import Translation
from manticore.stages.combine import TaskInfo
from manticore.stages.compare import Row
from manticore.stages.records import Step

_NO_GAP = (
    "Before and after fine-tuning",
    "The path found, before and after its fine-tuning, on the test split.",
)
_OVER_BUDGETS = (
    "Scores over budgets",
    "Marks are means over seeds, upright lines 95 % intervals.",
)
_POINTS = 400
"""Drawn points per curve: more cannot be seen, and would only make the page heavy."""
_SMOOTH_FROM = 40
"""Curves with at least this many points also get their running mean."""
_LOWEST_R2 = -0.25
"""R² has no lower end; bars stop here, their number is still written."""


def draw_figures(results: Results) -> dict[str, Drawing]:
    """Name → drawing, for every figure that the run has data for."""
    drawings = {}
    with house_style():
        for name, (title, caption, draw) in _FIGURES.items():
            figure = draw(results)
            if figure is not None:
                if name == "gap" and _nothing_was_cut(results):
                    title, caption = _NO_GAP
                if name == "comparison" and results.compare is not None and results.compare.over_budgets:
                    title, caption = _OVER_BUDGETS
                drawings[name] = Drawing(name, title, caption, to_svg(figure))
    return drawings


def comparison_figure(results: Results) -> Figure | None:
    """Score per model, one panel per budget: seeds as rings, mean as disc, 95 % interval as line.

    Over several budgets of a kind, the scores against these: a line per model.
    """
    compare = results.compare
    if compare is None or not any(row.mean is not None for row in compare.rows):
        return None
    if compare.over_budgets:
        return budgets_figure(results)
    task = results.task or TaskInfo()
    panels = max(1, len(compare.budgets))
    models = compare.models
    figure = Figure(figsize=(WIDTH, 0.95 + 0.34 * len(models)), layout="constrained")
    axes = figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
    for budget, ax in enumerate(axes):
        for y, model in enumerate(models):
            row = score_row(compare, model, budget)
            if row is not None:
                _score_line(ax, y, row, task, model_colour(results, model))
            untrained = compare.before(model, task.primary_metric)
            if untrained is not None:
                ax.plot(untrained, y, "x", color=model_colour(results, model), markersize=4.5, zorder=3)
        if task.chance is not None:
            ax.axvline(task.chance, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
            # below the last row: values are written above their marks, and may stand at chance
            ax.annotate(
                "chance",
                (task.chance, 0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 2),
                textcoords="offset points",
                va="bottom",
                fontsize=7.5,
                color=MUTED,
            )
        if budget < len(compare.budgets):
            what = compare.budgets[budget]
            spent = f" · {quantities.flops(what.flops)}" if what.flops is not None else ""
            ax.set_title(quantities.shorten(budget_name(results, budget), 44) + spent)
        ax.set_yticks(range(len(models)), [quantities.shorten(model_name(results, model), 24) for model in models])
        ax.set_ylim(len(models) - (0.4 if task.chance is None else 0.2), -0.6)
        ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.margins(x=0.12)
        ax.set_xlabel(_metric_label(task))
    return figure


def weights_figure(results: Results) -> Figure | None:
    """Mixture weights over the steps of the search, one small panel per block."""
    history = [s for s in (results.search.history if results.search else ()) if s.weights]
    if not history:
        return None
    history = [history[i] for i in _spread(len(history))]
    blocks = results.num_blocks
    columns = min(blocks, 4)
    lines = math.ceil(blocks / columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    steps = [s.step for s in history]
    names = results.component_names
    for block in range(lines * columns):
        ax = grid[block // columns][block % columns]
        if block >= blocks:
            ax.set_visible(False)
            # The panel above is now the lowest of its column.
            grid[block // columns - 1][block % columns].tick_params(labelbottom=True)
            continue
        for component in range(results.num_components):
            values = [s.weights[block][component] for s in history]
            ax.plot(
                steps,
                [math.nan if v is None else v for v in values],
                color=component_colour(component),
                linestyle=component_dashes(component),
                marker="o" if len(history) == 1 else None,
                label=quantities.shorten(names[component], 30) if block == 0 else None,
            )
        ax.set_ylim(-0.03, 1.03)
        ax.set_yticks([0, 0.5, 1])
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        title = f"block {block}"
        if results.path:
            kept = results.path[block]
            title += f" → {quantities.shorten(names[kept], 60 // columns)}"
            ax.set_title(title, color=component_colour(kept))
        else:
            ax.set_title(title)
    figure.supxlabel("search step", fontsize=8.5, color=MUTED)
    figure.legend(loc="outside upper left", ncols=min(results.num_components, 4))
    return figure


def alignment_figure(results: Results) -> Figure | None:
    """R² of every projector after alignment: one panel per direction, bars per boundary."""
    translations = [
        t for t in (results.align.translations if results.align else ()) if t.r2 is not None or t.r2_heldout is not None
    ]
    if not translations:
        return None
    directions: dict[tuple[int | None, int | None], list[Translation]] = {}
    for translation in translations:
        directions.setdefault((translation.source, translation.target), []).append(translation)
    columns = min(len(directions), 2)
    lines = math.ceil(len(directions) / columns)
    figure = Figure(figsize=(WIDTH, 0.75 + 1.35 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    values = [v for t in translations for v in (t.r2, t.r2_heldout) if v is not None]
    lowest = max(_LOWEST_R2, min(0.0, *values) * 1.1) if min(values) < 0 else 0.0
    for ax, ((source, target), group) in zip(grid, directions.items()):
        group = sorted(group, key=lambda t: -1 if t.boundary is None else t.boundary)
        known = source is not None and source < results.num_components
        colour = component_colour(source) if known and source is not None else MUTED
        _bars(ax, group, colour, lowest)
        ax.axhline(0, color=MUTED, linewidth=0.6)
        ax.set_title(_direction(results, source, target, group))
        ax.set_xticks(range(len(group)), [_boundary(t) for t in group])
        ax.grid(axis="x", visible=False)
        ax.set_ylim(lowest, 1.12)
        ax.set_yticks([0, 0.5, 1])
    for ax in grid[len(directions) :]:
        ax.set_visible(False)
    for line in range(lines):
        grid[line * columns].set_ylabel("R²")
    for shade, label in ((0.45, "calibration text"), (1.0, "held-out text")):
        grid[0].bar([0], [0], color=tint(MUTED, shade), label=label)
    figure.legend(loc="outside upper left", ncols=2)
    figure.supxlabel("boundary (0: after the embeddings, n: after block n − 1)", fontsize=8.5, color=MUTED)
    return figure


def gap_figure(results: Results) -> Figure | None:
    """Loss and metric of the supernet, of the hybrid cut out of it, and of that hybrid after fine-tuning.

    A path that the search has trained by itself was cut out of nothing: of that, before and after fine-tuning.
    """
    gap = results.discretize
    if gap is None:
        return None
    task = results.task or TaskInfo()
    names = ["before", "fine-tuned"] if _nothing_was_cut(results) else ["supernet", "discretized", "fine-tuned"]
    losses = [gap.loss_before, gap.loss_after, gap.loss_finetuned][-len(names) :]
    metrics = [gap.metric_before, gap.metric_after, gap.metric_finetuned][-len(names) :]
    panels: list[tuple[str, list[float | None], float | None]] = [("loss (lower is better)", losses, None)]
    if task.primary_metric != "loss":
        panels.append((_metric_label(task), metrics, task.chance))
    panels = [panel for panel in panels if any(v is not None for v in panel[1])]
    if not panels:
        return None
    figure, colours = Figure(figsize=(WIDTH, 2.2), layout="constrained"), (SOFT, tint(INK, 0.55), INK)[-len(names) :]
    for ax, (title, values, chance) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        ax.plot(range(len(names)), [math.nan if v is None else v for v in values], color=FAINT, zorder=1)
        for x, value in enumerate(values):
            if value is not None:
                ax.plot(x, value, "o", color=colours[x], markersize=7, clip_on=False)
                _number(ax, quantities.score(value), (x, value), INK, size=8.5, above=8)
        if chance is not None:
            ax.axhline(chance, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
            ax.annotate(
                "chance",
                (1, chance),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                fontsize=7.5,
                color=MUTED,
            )
        ax.set_xticks(range(len(names)), names)
        ax.tick_params(axis="x", labelcolor=INK, length=0)
        ax.set_xlim(-0.45, len(names) - 0.55)
        ax.margins(y=0.28)
        if min(v for v in values if v is not None) >= 0:
            ax.set_ylim(bottom=max(0.0, ax.get_ylim()[0]))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.grid(axis="x", visible=False)
        ax.set_title(title)
    return figure


def _nothing_was_cut(results: Results) -> bool:
    """Whether the search has trained the path by itself, so that there is no supernet to compare it with."""
    gap, search = results.discretize, results.search
    return bool(gap is not None and gap.loss_before is None and search is not None and search.candidates)


def curves_figure(results: Results) -> Figure | None:
    """Loss over the steps of the search and of fine-tuning, and the entropy of the mixture weights."""
    search = results.search.history if results.search else ()
    finetune = results.finetune.history if results.finetune else ()
    panels = [
        ("search: loss", _series(search, "loss"), SOFT),
        ("search: entropy of the mixture weights", _series(search, "entropy"), SOFT),
        ("fine-tuning: loss", _series(finetune, "loss"), INK),
    ]
    panels = [panel for panel in panels if panel[1][0]]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    for ax, (title, (steps, values), colour) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        _curve(ax, steps, values, colour, is_noisy="loss" in title)
        ax.set_title(title)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def _score_line(ax: Axes, y: int, row: Row, task: TaskInfo, colour: str) -> None:
    if row.mean is None:
        place = ("axes fraction", "data")
        ax.annotate("no finite score", (0.02, y), xycoords=place, va="center", fontsize=8, color=MUTED)
        return
    scores = [s.metrics.get(task.primary_metric) for s in row.seeds]
    finite = [s for s in scores if s is not None]
    ax.plot(finite, [y] * len(finite), "o", color=tint(colour, 0.5), markersize=4, fillstyle="none", zorder=2)
    if row.bounds is not None:
        ax.plot(row.bounds, [y, y], color=colour, linewidth=2, solid_capstyle="butt", zorder=3)
    ax.plot(row.mean, y, "o", color=colour, markersize=5.5, zorder=4)
    _number(ax, quantities.score(row.mean), (row.mean, y), colour)


def _bars(ax: Axes, group: Sequence[Translation], colour: str, lowest: float) -> None:
    """Two bars per projector: calibration text, held-out text."""
    for offset, field, face in ((-0.2, "r2", tint(colour, 0.4)), (0.2, "r2_heldout", colour)):
        for x, translation in enumerate(group):
            height = getattr(translation, field)
            if height is None:
                continue
            ax.bar(x + offset, max(height, lowest), width=0.36, color=face)
            if len(group) <= 6:
                _number(ax, f"{height:.2f}", (x + offset, max(height, 0.0)), MUTED, above=2)


def _number(ax: Axes, text: str, at: tuple[float, float], colour: str, *, size: float = 7.5, above: float = 6) -> None:
    """A value written over its mark, ``above`` in points."""
    ax.annotate(text, at, (0, above), textcoords="offset points", ha="center", fontsize=size, color=colour, zorder=5)


def _metric_label(task: TaskInfo) -> str:
    better = "higher" if task.higher_is_better else "lower"
    return f"{quantities.shorten(task.primary_metric, 30)} ({better} is better)"


def _direction(results: Results, source: int | None, target: int | None, group: Sequence[Translation]) -> str:
    names = results.component_names
    if source is None or target is None or not (0 <= source < len(names) and 0 <= target < len(names)):
        return quantities.shorten(group[0].name, 40)
    return f"{quantities.shorten(names[source], 24)} → {quantities.shorten(names[target], 24)}"


def _boundary(translation: Translation) -> str:
    return quantities.shorten(translation.name, 12) if translation.boundary is None else str(translation.boundary)


def _spread(total: int) -> list[int]:
    """At most ``_POINTS`` indices below ``total``, evenly spread, first and last among them."""
    if total <= _POINTS:
        return list(range(total))
    return [round(i * (total - 1) / (_POINTS - 1)) for i in range(_POINTS)]


def _series(history: Sequence[Step], field: str) -> tuple[list[int], list[float]]:
    points = [(s.step, getattr(s, field)) for s in history if getattr(s, field) is not None]
    return [p[0] for p in points], [p[1] for p in points]


def _curve(ax: Axes, steps: list[int], values: list[float], colour: str, is_noisy: bool) -> None:
    drawn = _spread(len(steps))
    smooth = _running_mean(values, len(values) // 20) if is_noisy and len(values) >= _SMOOTH_FROM else None
    xs = [steps[i] for i in drawn]
    raw = tint(colour, 0.35) if smooth else colour
    marker = "o" if len(xs) < 12 else None
    ax.plot(
        xs,
        [values[i] for i in drawn],
        color=raw,
        linewidth=0.8 if smooth else 1.5,
        marker=marker,
        markersize=3,
    )
    if smooth:
        ax.plot(xs, [smooth[i] for i in drawn], color=colour)


def _running_mean(values: list[float], reach: int) -> list[float]:
    """Mean over ``reach`` values to either side; at the ends over fewer, as many on one side as on the other."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    reaches = [min(reach, i, len(values) - 1 - i) for i in range(len(values))]
    windows = [(i - near, i + near + 1) for i, near in enumerate(reaches)]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]


_FIGURES: dict[str, tuple[str, str, Callable[[Results], Figure | None]]] = {
    "comparison": (
        "Scores at one budget",
        "Discs are means over seeds, rings single seeds, lines 95 % intervals.",
        comparison_figure,
    ),
    "writing": (
        "Recall and speed by length",
        "By tokens of the prompt; faint lines with rings are models before their training.",
        writing_figure,
    ),
    "candidates": (
        "Learning curves of the candidates",
        "Each path trained by itself, scored on held-out data at marks of equal compute; a cross ends one that failed.",
        candidates_figure,
    ),
    "blocks": (
        "The blocks",
        "Each lane is a component, each column a block; a chosen path runs from the embeddings to the head.",
        block_picture,
    ),
    "text": (
        "Whose text it is taken for",
        "Weights of the components' predictions after each token of held-out text, by the hybrid that is kept; each "
        "token is tinted by them.",
        text_figure,
    ),
    "mixture_weights": (
        "Mixture weights during the search",
        "For each block the share of each component.",
        weights_figure,
    ),
    "alignment": (
        "Alignment",
        "How much of the target component's features a projector explains before any training (R²; 1 is all).",
        alignment_figure,
    ),
    "gap": (
        "Discretization gap",
        "The supernet at the end of the search, the hybrid cut out of it, and that hybrid after fine-tuning.",
        gap_figure,
    ),
    "curves": (
        "Training curves",
        "Faint: every logged step; strong: running mean.",
        curves_figure,
    ),
}

FIGURE_NAMES = tuple(_FIGURES)
