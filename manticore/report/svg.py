"""Figures to SVG text: the same bytes for the same numbers, and a form that can stand inside an HTML page.

Text stays text, so a page can be searched and read aloud; the page's own fonts are narrower than the font
that matplotlib lays out with, so nothing grows into its neighbour.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.dom import minidom

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from manticore.report.palette import FAINT, INK, MUTED

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.titlesize": 9,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "manticore",
    "text.color": INK,
    # A name may hold dollar signs; it is not a formula.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelsize": 8,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with the report's style, whatever the reader's matplotlib is set to."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks; only their width is estimated here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_svg(figure: Figure) -> str:
    """A whole SVG file, without a date."""
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return stream.getvalue()


def to_png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    """The figure as PNG on white, without a trace of the program's version."""
    figure.set_dpi(dots_per_inch)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()


def inline(svg: str, name: str, label: str) -> str:
    """The ``<svg>`` element for an HTML page.

    Identifiers get ``name`` as prefix, since several figures share one page; ``label`` is read by screen readers.
    """
    document = minidom.parseString(svg.encode("utf-8"))
    root = document.documentElement
    assert root is not None
    _walk(root, name)
    for attribute in ("width", "height", "version", "xmlns"):
        if root.hasAttribute(attribute):
            root.removeAttribute(attribute)
    root.setAttribute("role", "img")
    root.setAttribute("aria-label", label)
    # What matplotlib writes into a style sheet, which on a page would reach beyond this figure.
    root.setAttribute("stroke-linejoin", "round")
    root.setAttribute("stroke-linecap", "butt")
    return root.toxml()


def _walk(element: minidom.Element, prefix: str) -> None:
    for child in list(element.childNodes):
        if child.nodeType == child.COMMENT_NODE or child.nodeName in ("metadata", "style"):
            element.removeChild(child)
        elif isinstance(child, minidom.Element):
            _walk(child, prefix)
    if element.hasAttribute("id"):
        element.setAttribute("id", f"{prefix}-{element.getAttribute('id')}")
    for attribute in ("href", "xlink:href"):
        if element.getAttribute(attribute).startswith("#"):
            element.setAttribute(attribute, f"#{prefix}-{element.getAttribute(attribute)[1:]}")
    for attribute in ("clip-path", "style"):
        if "url(#" in element.getAttribute(attribute):
            element.setAttribute(attribute, element.getAttribute(attribute).replace("url(#", f"url(#{prefix}-"))
    if element.nodeName == "text" and element.hasAttribute("style"):
        fonts = re.sub(r"'DejaVu Sans'[^;]*", FONTS, element.getAttribute("style"))
        element.setAttribute("style", fonts)
