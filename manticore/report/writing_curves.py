"""Recall, decoding speed and the time to the first token against the length of a prompt: a line per model.

Models have the colours, dashes and marks that they have over budgets. A faint line with rings is a model before its
training, which is no other in speed; so speed is shown once per model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from manticore import quantities
from manticore.report.block_picture import WIDTH
from manticore.report.budget_curves import LineStyle, line_styles
from manticore.report.naming import model_name
from manticore.report.palette import MUTED, tint
from manticore.report.results import Results
from manticore.report.writing import by_model, lengths, written
from manticore.stages.written import Writing

_FAINT = 0.45


def writing_figure(results: Results) -> Figure | None:
    """Up to three panels; None where there are not two lengths."""
    rows, compare = written(results.compare), results.compare
    asked = lengths(rows)
    if compare is None or len(asked) < 2:
        return None
    models, styles = by_model(rows), line_styles(results, [row.model for row in compare.rows] + [r.model for r in rows])
    names = {model: quantities.shorten(model_name(results, model), 34) for model in models}
    panels = [name for name in ("recall", "speed", "first") if any(_points(row, name) for row in rows)]
    columns = max(1, min(len(names), 4, 110 // (max(map(len, names.values())) + 7)))
    figure = Figure(figsize=(WIDTH, 2.6 + 0.2 * math.ceil(len(names) / columns)), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for model, own in models.items():
            shown = own if panel == "recall" else own[-1:]
            for row in shown:
                last = row is own[-1]
                _line(ax, _points(row, panel), styles[model], names[model] if last else None, faint=not last)
        _axes(ax, panel, asked)
    figure.supxlabel("tokens of the prompt", fontsize=8.5, color=MUTED)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    return figure


def _points(row: Writing, panel: str) -> list[tuple[int, float]]:
    if panel == "recall":
        found: list[tuple[int, float | None]] = [(one.length, one.share) for one in row.generated.recall]
    elif panel == "speed":
        found = [(one.context, one.tokens_per_second) for one in row.generated.speed]
    else:
        found = [(one.context, one.first_token_ms) for one in row.generated.speed]
    # a logarithm has no place for 0
    return [(x, y) for x, y in found if y is not None and (panel == "recall" or y > 0)]


def _line(ax: Axes, points: Sequence[tuple[int, float]], style: LineStyle, name: str | None, *, faint: bool) -> None:
    colour = tint(style.colour, _FAINT) if faint else style.colour
    ax.plot(
        [x for x, _ in points], [y for _, y in points], color=colour, linestyle=style.dashes,
        linewidth=1.0 if faint else style.width, marker=style.mark, markersize=4, clip_on=False, label=name,
        markerfacecolor="white" if faint else colour, zorder=2 if faint else 3,
    )  # fmt: skip


def _axes(ax: Axes, panel: str, asked: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(asked))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="x", labelrotation=20 if len(asked) > 3 else 0)
    if panel == "recall":
        ax.set_title("recall")
        ax.set_ylim(-0.03, 1.03)
        ax.set_yticks([0, 0.5, 1])
    elif panel == "speed":
        ax.set_title("tokens per second")
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(4))
    else:
        ax.set_title("ms to the first token")
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: ""))
