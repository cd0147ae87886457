"""Pictures of who stands in the population over the search: classes of layers, links and their distance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from manticore import quantities
from manticore.experiments.motifs import LinkKind, Run
from manticore.report.block_picture import WIDTH
from manticore.report.design_growth import Populations
from manticore.report.layer_picture import Look
from manticore.report.palette import INK, component_colour, component_dashes, text_on

_MOST_CLASSES = 17
_MOST_LINKS = 12
_OTHERS = "#d5d9df"


def classes_figure(found: Populations, drawn: dict[str, Look]) -> Figure | None:
    """Of all layers of each generation, the share of each class; None where there is one class, or one generation."""
    totals: Counter[str] = sum((step.layers for step in found.steps), Counter())
    if len(totals) < 2 or len(found.steps) < 2:
        return None
    shown = [label for label, _ in totals.most_common(_MOST_CLASSES)]
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    ax = figure.subplots()
    floor = [0.0] * len(found.steps)
    for label in shown:
        look = drawn[label]
        shares = [step.share_of_layers(label) for step in found.steps]
        bars = ax.bar(
            range(len(shares)), shares, 0.86, bottom=floor, color=look.colour, edgecolor="white", linewidth=0.6,
            label=f"{look.letters}  {quantities.shorten(label, 30)}", hatch="----" if look.barred else None,
        )  # fmt: skip
        for bar, share in zip(bars, shares):
            if share > 0.045 and len(shares) <= 24:
                middle = (bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2)
                ax.annotate(
                    look.letters, middle, ha="center", va="center", fontsize=6.5, color=text_on(look.colour),
                    bbox={"facecolor": look.colour, "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
        floor = [below + share for below, share in zip(floor, shares)]
    if len(totals) > len(shown):
        rest = [1 - below for below in floor]
        ax.bar(range(len(rest)), rest, 0.86, bottom=floor, color=_OTHERS, label=f"{len(totals) - len(shown)} others")
    ax.set_ylim(0, 1)
    ax.set_ylabel("share of all layers")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    _steps(ax, found)
    ax.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=6 if len(shown) > 4 else 4, fontsize=7.5)
    return figure


def links_figure(found: Populations) -> Figure | None:
    """Links per design by what is shared, and their mean distance; None where nothing is."""
    totals: Counter[Run] = sum((step.shared for step in found.steps), Counter())
    if not totals:
        return None
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (what, _) in enumerate(totals.most_common(_MOST_LINKS)):
        values = [step.shared[what] / max(1, step.designs) for step in found.steps]
        label = quantities.shorten(" and ".join(what), 44)
        _line(left, values, component_colour(place), component_dashes(place // 6), label)
    left.set_ylabel("links per design")
    left.set_ylim(bottom=0)
    far = [step.mean_distance() for step in found.steps]
    _line(right, [float("nan") if value is None else value for value in far], INK, "-", None)
    right.set_ylabel("mean distance in layers")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        _steps(ax, found)
        ax.yaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside upper left", ncols=3, fontsize=7.5)
    return figure


def link_name(kind: LinkKind) -> str:
    """``weights of sa-2``, ``keys and values of sa-3``."""
    what = "weights" if kind.kind == "weights" else " and ".join(kind.features) or "features"
    return quantities.shorten(f"{what} of {kind.layer}", 44)


def _line(ax: Axes, values: Sequence[float], colour: str, dashes: object, label: str | None) -> None:
    mark = "o" if len(values) <= 24 else None
    ax.plot(range(len(values)), values, color=colour, linestyle=dashes, marker=mark, markersize=3.5, label=label)  # type: ignore[arg-type]


def _steps(ax: Axes, found: Populations) -> None:
    """Names of the generations below, those that fit."""
    every = max(1, len(found.names) // 12)
    places = range(0, len(found.names), every)
    ax.set_xticks(list(places), [found.names[place] for place in places])
    ax.set_xlabel(found.unit)
