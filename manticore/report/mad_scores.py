"""MAD scores as a table for the terminal and as a plot: tasks side by side, one mark per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from manticore import quantities
from manticore.report.block_picture import WIDTH
from manticore.report.palette import FAINT, INK, MUTED, component_colour
from manticore.report.svg import house_style, to_png, to_svg
from manticore.tasks.mad.examples import KINDS
from manticore.tasks.mad.score import ModelScore
from manticore.writing import write_bytes, write_text

_SHORT = {
    "in-context-recall": "recall",
    "noisy-in-context-recall": "noisy recall",
    "fuzzy-in-context-recall": "fuzzy recall",
    "selective-copying": "copying",
    "compression": "compression",
    "memorization": "memorization",
}
_NARROW = {"copying": "copy", "compression": "com-\npress", "memorization": "memo-\nrize"}
"""Headings of the table, which leaves a terminal of 80 columns room for the longest name of a stack."""
_MARKS = ("o", "s", "^", "D", "v", "P")
_SPREAD = 0.56
"""Share of a task's column that its marks spread over."""


def write_scores_figure(folder: Path, scores: Sequence[ModelScore], *, tier: str, chance: Mapping[str, float]) -> None:
    """Write ``scores.svg`` and ``scores.png``, see :func:`scores_figure`."""
    with house_style():
        figure = scores_figure(scores, tier=tier, chance=chance)
        write_text(folder / "scores.svg", to_svg(figure))
        write_bytes(folder / "scores.png", to_png(figure))


def render_scores(scores: Sequence[ModelScore], *, metric: str, title: str) -> Table:
    """One row per model: its tasks and their mean. A mean over fewer tasks than the best covered model's says so."""
    tasks = _tasks(scores)
    table = Table(title=Text(f"{title}: {metric} (higher is better)"), box=SIMPLE_HEAD, padding=0)
    table.add_column("model", overflow="fold")
    for task in tasks:
        table.add_column(_NARROW.get(_SHORT[task], _SHORT[task]).replace(" ", "\n"), justify="right")
    table.add_column("mean", justify="right")
    for score in scores:
        cells = []
        for task in tasks:
            found = score.tasks.get(task)
            cell = Text(quantities.MISSING if found is None else quantities.score(found.score))
            failed = sum(setting.failed for setting in found.settings) if found is not None else 0
            if failed:
                cell.append(f"\n{failed} failed", style="yellow")
            cells.append(cell)
        mean = Text(quantities.score(score.score))
        if score.num_scored_tasks < len(tasks):
            mean.append(f"\n{score.num_scored_tasks} tasks", style="yellow")
        table.add_row(Text(score.model), *cells, mean)
    return table


def scores_figure(scores: Sequence[ModelScore], *, tier: str, chance: Mapping[str, float]) -> Figure:
    """Task scores, one column per task and one for the mean; a dashed line marks chance where it is given.

    The mark of a mean that leaves tasks out is hollow.

    Args:
        scores: one entry per model.
        tier: its name, for the heading.
        chance: task → accuracy of a uniform guess, mean over the settings.
    """
    tasks = _tasks(scores)
    figure = Figure(figsize=(WIDTH, 3.1 + 0.2 * len(scores)), layout="constrained")
    ax = figure.subplots()
    step = _SPREAD / max(1, len(scores) - 1)
    for index, score in enumerate(scores):
        offset = index * step - _SPREAD / 2 if len(scores) > 1 else 0.0
        colour = component_colour(index)
        # colours repeat after six models, together with their shapes only after thirty-six
        shape = {"s": 34, "marker": _MARKS[(index + index // 6) % len(_MARKS)], "edgecolors": colour, "zorder": 3}
        found = [(x, score.tasks[task].score) for x, task in enumerate(tasks) if task in score.tasks]
        drawn = [(x + offset, y) for x, y in found if y is not None]
        ax.scatter(
            [x for x, _ in drawn],
            [y for _, y in drawn],
            facecolors=colour,
            label=quantities.shorten(score.model, 48),
            **shape,  # type: ignore[arg-type]
        )
        if score.score is not None:
            whole = score.num_scored_tasks == len(tasks)
            drawn.append((len(tasks) + offset, score.score))
            ax.scatter(*drawn[-1], facecolors=colour if whole else "white", **shape)  # type: ignore[arg-type]
        ax.vlines([x for x, _ in drawn], 0, [y for _, y in drawn], color=colour, alpha=0.35, linewidth=1.2, zorder=2)
    for x, task in enumerate(tasks):
        if task in chance:
            ax.hlines(chance[task], x - 0.4, x + 0.4, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    ax.axvline(len(tasks) - 0.5, color=FAINT, linewidth=0.8)
    ax.set_xticks(range(len(tasks) + 1), [*(_SHORT[task].replace(" ", "\n") for task in tasks), "mean"])
    ax.tick_params(axis="x", length=0, labelcolor=INK)
    ax.set_xlim(-0.6, len(tasks) + 0.6)
    ax.set_ylim(0, 1.04)
    ax.grid(axis="x", visible=False)
    ax.set_ylabel("mad_macro")
    notes = ["dashed: a uniform guess"] if chance else []
    notes += ["hollow: a mean that leaves tasks out"] if any(s.num_scored_tasks < len(tasks) for s in scores) else []
    ax.set_title(f"MAD, {tier} tier" + (f" ({'; '.join(notes)})" if notes else ""))
    if scores:
        figure.legend(loc="outside lower left", ncols=2 if len(scores) > 3 else 1)
    return figure


def _tasks(scores: Sequence[ModelScore]) -> list[str]:
    """The tasks that any model has results for, in the benchmark's order."""
    return [task for task in KINDS if any(task in score.tasks for score in scores)]
