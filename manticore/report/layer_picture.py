"""A design's layers as a strip of coloured cells, with arcs for what layers share, and the same in words.

Colours and letters are those of the whole study, so that a layer looks alike wherever it stands. L layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape
from matplotlib.offsetbox import DrawingArea
from matplotlib.patches import Rectangle

from manticore import quantities
from manticore.experiments.motifs import Link, links_of
from manticore.report.design_record import Layer, Study, Trained
from manticore.report.palette import COMPONENTS, INK, text_on, tint

_HUES = (*COMPONENTS, "#7b5ea7", "#8c6d31", "#6b7280")
_SHADES = (1.0, 0.6, 0.35, 0.8)
"""Of layers that differ by a number: ``sa-1``, ``sa-2``."""
_DIFFERENTIAL = "diff-"
"""Two of a kind, one subtracted from the other: drawn as the kind itself with a bar over it."""
_CELL, _HEIGHT = 19.0, 17.0
_MOST_WIDTH = 460.0
_LETTERED = 11.0
"""Cells that are narrower hold no letter."""


@dataclass(frozen=True)
class Look:
    """How a class of layers is drawn."""

    label: str
    colour: str
    letters: str
    barred: bool = False


def looks(study: Study) -> dict[str, Look]:
    """Class of layers → how it is drawn, in alphabetical order."""
    entries: list[Trained] = [*study.trials, *study.baselines]
    labels = sorted({layer.label for entry in entries for layer in entry.layers})
    letters = _letters(study, labels)
    hues: dict[str, str] = {}
    shades: Counter[str] = Counter()
    found: dict[str, Look] = {}
    for label in sorted(labels, key=lambda label: (label.startswith(_DIFFERENTIAL), label)):
        plain = label.removeprefix(_DIFFERENTIAL)
        if plain in found:
            colour = found[plain].colour
        else:
            stem = plain.rstrip("0123456789").rstrip("- ")
            hue = hues.setdefault(stem, _HUES[len(hues) % len(_HUES)])
            colour = tint(hue, _SHADES[shades[stem] % len(_SHADES)])
            shades[stem] += 1
        found[label] = Look(label, colour, letters[label], label.startswith(_DIFFERENTIAL))
    return {label: found[label] for label in labels}


def strip(layers: Sequence[Layer], drawn: dict[str, Look]) -> Markup:
    """The strip for a page."""
    cell = min(_CELL, _MOST_WIDTH / len(layers))
    links = _links(layers)
    depth = max((_depth(link, cell) for link in links), default=0.0)
    width, height = cell * len(layers) + 2, _HEIGHT + depth + 2
    gap = 1 if cell > 4 else 0
    parts = []
    for place, layer in enumerate(layers):
        look, x = drawn[layer.label], 1 + place * cell
        shape = f'x="{x:g}" y="1" width="{cell - gap:g}"'
        parts.append(f'<rect {shape} height="{_HEIGHT:g}" rx="{1.5 * gap:g}" fill="{look.colour}"/>')
        if look.barred:
            parts.append(f'<rect {shape} height="3" fill="currentColor"/>')
        if cell >= _LETTERED:
            points = min(10.5, 1.55 * cell / max(1.6, len(look.letters)))
            parts.append(
                f'<text x="{x + (cell - gap) / 2:g}" y="{_HEIGHT - 3:g}" font-size="{points:.3g}" text-anchor="middle" '
                f'fill="{text_on(look.colour)}">{escape(look.letters)}</text>'
            )
    for link in links:
        x, y = 1 + (link.below + 0.5) * cell, _HEIGHT + 1.5
        dashes = ' stroke-dasharray="3 2"' if link.kind == "features" else ""
        reach = link.distance * cell
        parts.append(
            f'<path d="M{x:g} {y:g}q{reach / 2:g} {2 * _depth(link, cell):g} {reach:g} 0" fill="none" '
            f'stroke="currentColor" stroke-width="1.2"{dashes}/>'
        )
    size = f'width="{width:.4g}" height="{height:.4g}" viewBox="0 0 {width:.4g} {height:.4g}"'
    label = escape(in_words(layers))
    return Markup(f'<svg class="strip" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>')


def strip_box(layers: Sequence[Layer], drawn: dict[str, Look], *, most: float = 84.0) -> DrawingArea:
    """The strip for a figure, in points; small, without letters and links.

    Args:
        layers: of the design.
        drawn: from :func:`looks`.
        most: its width at most.
    """
    cell = min(6.0, most / len(layers))
    area = DrawingArea(cell * len(layers), 6, 0, 0)
    for place, layer in enumerate(layers):
        look = drawn[layer.label]
        area.add_artist(Rectangle((place * cell, 0), cell * 0.92, 6, facecolor=look.colour, linewidth=0))
        if look.barred:
            area.add_artist(Rectangle((place * cell, 4.8), cell * 0.92, 1.2, facecolor=INK, linewidth=0))
    return area


def in_words(layers: Sequence[Layer]) -> str:
    """The layers from the bottom to the top, equal neighbours counted, and what they share."""
    runs = [(label, len(list(group))) for label, group in groupby(layer.label for layer in layers)]
    said = ", ".join(f"{number} × {label}" if number > 1 else label for label, number in runs)
    shared = "; ".join(link_in_words(link) for link in _links(layers))
    return quantities.shorten(f"{said}; {shared}" if shared else said, 1200)


def link_in_words(link: Link) -> str:
    """What a layer takes from another, layers counted from 0."""
    what = " and ".join(link.features) or "features" if link.kind == "features" else "weights"
    return f"layer {link.above} takes the {what} of layer {link.below}"


def _links(layers: Iterable[Layer]) -> list[Link]:
    return links_of([(layer.label, layer.options, layer.sharing) for layer in layers])


def _depth(link: Link, cell: float) -> float:
    return min(9.0, 3.0 + 0.12 * link.distance * cell)


def _letters(study: Study, labels: Sequence[str]) -> dict[str, str]:
    """A sign for every class: the letter by which the study itself spells it, else its initials."""
    spelled: dict[str, set[str]] = {}
    for trial in study.trials:
        if len(trial.design) == len(trial.layers):
            for letter, layer in zip(trial.design, trial.layers):
                spelled.setdefault(layer.label, set()).add(letter)
    own = {label: next(iter(found)) for label, found in spelled.items() if len(found) == 1}
    # a position's number in place of a letter would say nothing
    if not (len(own) == len(spelled) == len(set(own.values())) and all(map(str.isalpha, own.values()))):
        own = {}
    for label in labels:
        if label not in own:
            own[label] = next(sign for sign in _signs(label) if sign not in own.values())
    return own


def _signs(label: str) -> Iterable[str]:
    """``diff-sa-1`` → ``DS1``, then longer ones, until one is free."""
    words = [word for word in label.replace(" ", "-").split("-") if word] or ["?"]
    for length in range(1, 4):
        yield "".join(word if word.isdigit() else word[:length].capitalize() for word in words)[:6]
    yield from (f"{words[0][0].upper()}{number}" for number in range(2, 100_000))
