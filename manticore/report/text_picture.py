"""Weights per token over pieces of text: whom the hybrid took each piece to be of.

K components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from manticore import quantities
from manticore.report.block_picture import WIDTH
from manticore.report.palette import INK, component_colour, component_dashes, tint
from manticore.report.results import Results
from manticore.stages.combine import WeighedText

_CHARACTERS = 112
"""Per line of text."""
_LINE = 0.19
"""Height of one, in inches."""
_SHADE = 0.4


def text_figure(results: Results) -> Figure | None:
    """Of each piece the weights as lines over its tokens, and its text, tinted by them."""
    tuned = results.finetune.texts if results.finetune else ()
    pieces = [piece for piece in tuned or (results.combine.texts if results.combine else ()) if piece.weights]
    if not pieces:
        return None
    laid_out = [_lines(piece) for piece in pieces]
    heights = [height for lines in laid_out for height in (1.15, _LINE * len(lines) + 0.1)]
    figure = Figure(figsize=(WIDTH, 0.5 + sum(heights) + 0.3 * len(pieces)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    names = results.component_names
    for index, (piece, lines) in enumerate(zip(pieces, laid_out)):
        above, below = axes[2 * index], axes[2 * index + 1]
        for k in range(results.num_components):
            above.plot(
                range(1, len(piece.weights) + 1),
                [math.nan if k >= len(row) or row[k] is None else row[k] for row in piece.weights],
                color=component_colour(k),
                linestyle=component_dashes(k),
                label=quantities.shorten(names[k], 30) if index == 0 else None,
            )
        above.set_ylim(-0.03, 1.03)
        above.set_yticks([0, 0.5, 1])
        above.set_xlim(1, max(2, len(piece.weights)))
        above.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        above.set_title(f"weights after each token{f', piece {index + 1}' if len(pieces) > 1 else ''}")
        _write(below, piece, lines)
    figure.legend(loc="outside upper left", ncols=min(results.num_components, 4))
    return figure


def _lines(piece: WeighedText) -> list[list[tuple[int, int, str]]]:
    """Lines of (token, column, text)."""
    lines: list[list[tuple[int, int, str]]] = [[]]
    column = 0
    for token, text in enumerate(piece.tokens[: len(piece.weights)]):
        shown = text[:_CHARACTERS] or "·"
        if column + len(shown) > _CHARACTERS:
            lines.append([])
            column = 0
        lines[-1].append((token, column, shown))
        column += len(shown)
    return lines


def _write(ax: Axes, piece: WeighedText, lines: Sequence[Sequence[tuple[int, int, str]]]) -> None:
    ax.set_xlim(0, _CHARACTERS)
    ax.set_ylim(len(lines), 0)
    ax.axis("off")
    for y, line in enumerate(lines):
        for token, column, text in line:
            colour = _blend(piece.weights[token])
            ax.add_patch(Rectangle((column, y + 0.06), len(text), 0.88, color=colour, linewidth=0))
            ax.text(column, y + 0.72, text, family="DejaVu Sans Mono", fontsize=6.6, color=INK)


def _blend(weights: Sequence[float | None]) -> str:
    """The components' colours on white, as their weights say."""
    tints = [tint(component_colour(k), _SHADE) for k in range(len(weights))]
    shares = [weight or 0.0 for weight in weights]
    whole = sum(shares) or 1.0
    channels = (sum(int(t[i : i + 2], 16) * share for t, share in zip(tints, shares)) / whole for i in (1, 3, 5))
    return "#" + "".join(f"{min(255, round(channel)):02x}" for channel in channels)
