"""The hybrid as a picture: components are lanes, blocks are columns, the path runs from embeddings to head.

A kept segment is filled and names its layers; where the path changes to another feature space a projector
translates. Before a path is known, segments are tinted by their mixture weights. K lanes, N columns. Units of the
canvas: inches.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from manticore.quantities import shorten
from manticore.report.palette import FAINT, INK, MUTED, component_colour, text_on, tint
from manticore.report.results import Results

WIDTH = 9.6
_LABELS = 1.55
_LANE = 0.68
_HEADER = 0.34
_FOOTER = 0.42
_BOX_HEIGHT = 0.42
_WIDEST_COLUMN = 2.0


@dataclass(frozen=True)
class _Grid:
    """Where things stand. Column 0 is the embeddings, 1..N the blocks, N+1 the head."""

    num_components: int
    num_blocks: int

    @property
    def column(self) -> float:
        return min(_WIDEST_COLUMN, (WIDTH - _LABELS) / (self.num_blocks + 2))

    @property
    def box(self) -> float:
        return self.column * 0.7

    @property
    def height(self) -> float:
        return _HEADER + self.num_components * _LANE + _FOOTER

    def centre(self, component: int, column: int) -> tuple[float, float]:
        x = _LABELS + (column + 0.5) * self.column
        return x, self.height - _HEADER - (component + 0.5) * _LANE


def block_picture(results: Results) -> Figure | None:
    """The picture, or None where the run has not even combined its components."""
    if not results.num_components or not results.num_blocks:
        return None
    grid = _Grid(results.num_components, results.num_blocks)
    figure = Figure(figsize=(WIDTH, grid.height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, grid.height), aspect="equal")
    axes.axis("off")
    _lanes(axes, grid, results)
    for component in range(grid.num_components):
        for block in range(grid.num_blocks):
            _segment(axes, grid, results, component, block)
    if results.path:
        _route(axes, grid, results.path, hand_overs(results))
        _legend(axes, grid)
    elif results.finetune is not None:
        _say(axes, "all components run side by side, in every block")
    else:
        what = "the tint and the number are the mixture weight" if results.weights else "no path chosen yet"
        _say(axes, f"every block still holds all components; {what}")
    return figure


def layer_range(results: Results, component: int, block: int) -> str:
    """``3`` or ``3–5``, counted from 0; empty where the cuts are not known."""
    if not results.combine or not results.combine.boundaries:
        return ""
    first, stop = results.combine.boundaries[component][block : block + 2]
    return f"{first}" if stop - first <= 1 else f"{first}–{stop - 1}"


def hand_overs(results: Results) -> list[int]:
    """Blocks of the path before which the feature space changes, so that a projector stands there."""
    spaces = (results.combine and results.combine.feature_spaces) or range(results.num_components)
    changes = enumerate(pairwise(results.path), 1)
    return [n for n, (source, target) in changes if spaces[source] != spaces[target]]


def layer_words(results: Results, component: int, block: int) -> str:
    """``layer 3`` or ``layers 3–5``; empty where the cuts are not known."""
    layers = layer_range(results, component, block)
    return layers and f"layer{'s' if '–' in layers else ''} {layers}"


def _lanes(axes: Axes, grid: _Grid, results: Results) -> None:
    right = _LABELS + grid.column * (grid.num_blocks + 2)
    for component, name in enumerate(results.component_names):
        _, y = grid.centre(component, 0)
        axes.plot([_LABELS, right], [y, y], color=FAINT, linewidth=0.6, zorder=0)
        axes.text(
            _LABELS - 0.12,
            y,
            shorten(name, 17),
            ha="right",
            va="center",
            color=component_colour(component),
            fontweight="bold",
        )
    for block in range(grid.num_blocks):
        x, _ = grid.centre(0, block + 1)
        title = f"block {block}" if grid.column > 0.65 else f"{block}"
        axes.text(x, grid.height - _HEADER / 2, title, ha="center", va="center", color=MUTED)
    if grid.column <= 0.65:
        axes.text(_LABELS - 0.12, grid.height - _HEADER / 2, "block", ha="right", va="center", color=MUTED)


def _box(axes: Axes, grid: _Grid, centre: tuple[float, float], face: str, edge: str, dashed: bool = False) -> None:
    x, y = centre
    axes.add_patch(
        FancyBboxPatch(
            (x - grid.box / 2, y - _BOX_HEIGHT / 2),
            grid.box,
            _BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=face,
            edgecolor=edge,
            linewidth=0.9,
            linestyle=(0, (3, 2)) if dashed else "-",
            zorder=3,
        )
    )


def _segment(axes: Axes, grid: _Grid, results: Results, component: int, block: int) -> None:
    colour, path, weights = component_colour(component), results.path, results.weights
    text = (layer_words if grid.box > 0.75 else layer_range)(results, component, block)
    centre = grid.centre(component, block + 1)
    if path:
        kept = path[block] == component
        face = colour if kept else "#ffffff"
        _box(axes, grid, centre, face, colour if kept else FAINT)
        ink = text_on(face) if kept else "#9aa1ab"
    elif weights:
        weight = weights[block][component]
        face = tint(colour, weight or 0.0)
        _box(axes, grid, centre, face, colour)
        ink = text_on(face)
        shown = "" if weight is None else f"{weight:.2f}"
        text = f"{text}\n{shown}" if text else shown
    else:
        _box(axes, grid, centre, "#ffffff", colour)
        ink = INK
    axes.text(*centre, text, ha="center", va="center", color=ink, fontsize=8 if grid.box > 0.5 else 7, zorder=4)


def _route(axes: Axes, grid: _Grid, path: tuple[int, ...], translated: Collection[int]) -> None:
    """Embeddings, arrows from block to block, head; a diamond marks a projector."""
    stops = [(path[0], 0), *((c, n + 1) for n, c in enumerate(path)), (path[-1], grid.num_blocks + 1)]
    for (component, column), title in ((stops[0], "embed."), (stops[-1], "head")):
        centre = grid.centre(component, column)
        _box(axes, grid, centre, tint(component_colour(component), 0.14), component_colour(component))
        axes.text(*centre, title, ha="center", va="center", fontsize=8 if grid.box > 0.5 else 6.5, zorder=4)
    for (a, column), (b, following) in pairwise(stops):
        (x0, y0), (x1, y1) = grid.centre(a, column), grid.centre(b, column + 1)
        start, stop = x0 + grid.box / 2, x1 - grid.box / 2
        middle, head = (start + stop) / 2, min(0.09, (stop - start) * 0.5)
        if a == b:
            axes.plot([start, stop - head], [y0, y0], color=INK, linewidth=1.1, zorder=2)
        else:
            xs, ys = [start, middle, middle, stop - head], [y0, y0, y1, y1]
            axes.plot(xs, ys, color=INK, linewidth=1.1, zorder=2, solid_joinstyle="round")
            if following - 1 in translated:
                _diamond(axes, middle, (y0 + y1) / 2)
        tip = [(stop, y1), (stop - head, y1 + head * 0.55), (stop - head, y1 - head * 0.55)]
        axes.add_patch(Polygon(tip, closed=True, facecolor=INK, edgecolor="none", zorder=5))


def _diamond(axes: Axes, x: float, y: float, radius: float = 0.085) -> None:
    corners = [(x - radius, y), (x, y + radius), (x + radius, y), (x, y - radius)]
    axes.add_patch(Polygon(corners, closed=True, facecolor="#ffffff", edgecolor=INK, linewidth=1.1, zorder=6))


_SMALL: dict[str, Any] = {"va": "center", "color": MUTED, "fontsize": 8}


def _say(axes: Axes, text: str) -> None:
    axes.text(_LABELS, _FOOTER / 2, text, **_SMALL)


def _legend(axes: Axes, grid: _Grid) -> None:
    x, y, style = _LABELS, _FOOTER / 2, _SMALL
    for face, edge, text, width in (
        (MUTED, MUTED, "kept (layers counted from 0)", 2.1),
        ("#ffffff", FAINT, "dropped", 0.95),
    ):
        axes.add_patch(
            FancyBboxPatch(
                (x, y - 0.07),
                0.2,
                0.14,
                boxstyle="round,pad=0,rounding_size=0.03",
                facecolor=face,
                edgecolor=edge,
                linewidth=0.9,
            )
        )
        axes.text(x + 0.28, y, text, **style)
        x += width + 0.1
    _diamond(axes, x + 0.1, y, radius=0.075)
    axes.text(x + 0.26, y, "projector (hand-over between components)", **style)
