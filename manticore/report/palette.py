"""Colours of the report: one per component, the same in every figure and table.

The component colours are those of Okabe and Ito, "Color Universal Design" (2008), that stand out on white; they
can be told apart with every common colour blindness, and lines also differ in their dashes. K components.
"""

from __future__ import annotations

from typing import Any

from manticore.experiments.rows import HYBRID
from manticore.report.naming import alone
from manticore.report.results import Results

COMPONENTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
MARKS = ("s", "^", "D", "v", "P", "X")
"""Beside discs."""
CROWD = "#b4bac3"
"""Of many that are not told apart."""
INK = "#1f2328"
MUTED = "#6b7280"
FAINT = "#d5d9df"
SOFT = "#8a5fb0"
"""Mixes of components that keep all of them: ensemble and soft supernet."""


def component_colour(component: int) -> str:
    return COMPONENTS[component % len(COMPONENTS)]


def component_dashes(component: int) -> Any:
    return DASHES[component % len(DASHES)]


def model_colour(results: Results, model: str) -> str:
    """A parent has its component's colour, the hybrid is ink, what keeps all components is violet."""
    if model == HYBRID:
        return INK if alone(results) is None else component_colour(results.path[0])
    names = results.component_names
    return component_colour(names.index(model)) if model in names else SOFT


def text_on(colour: str) -> str:
    """White or ink, whichever has the higher contrast (WCAG relative luminance) on ``colour``."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    return "#ffffff" if luminance < 0.24 else INK


def tint(colour: str, share: float) -> str:
    """``colour`` mixed with white; share 1 is the colour itself."""
    parts = [round(255 + (int(colour[i : i + 2], 16) - 255) * share) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in parts)
