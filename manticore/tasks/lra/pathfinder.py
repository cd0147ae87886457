"""Pathfinder and Path-X of the Long Range Arena, generated: two dashed curves, distractors, two discs.

The label is 1 where the discs lie at the ends of one curve, 0 where each lies on another. Source: the published rules
and settings of the generator behind Tay et al. 2020, arXiv 2011.04006 (Linsley et al. 2018, arXiv 1805.08315). The
released images were drawn without a seed, so what is made here follows the same rules and is not the released split.

Every example has a random stream of its own, named by size, level, seed, split and index: it can be made alone, and the
first examples of a split are the same however many are made.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from manticore.making import checked
from manticore.tasks.lra.pathfinder_drawing import (
    DEGREES,
    FULL,
    Onward,
    Pen,
    Point,
    Shape,
    Stamp,
    disc,
    moved,
    pen,
    stretched,
)

Side = Literal[32, 64, 128]
Level = Literal["easy", "intermediate", "hard"]
LEVELS: dict[Level, int] = {"easy": 6, "intermediate": 9, "hard": 14}
"""Segments of each of the two curves; the benchmark's tables use the hard level."""


@dataclass(frozen=True)
class Settings:
    """Of one image size; lengths in pixels."""

    length: int
    thickness: float
    margins: tuple[int, ...]
    """One is drawn per image."""
    seed_distance: int
    """Between the first points of the two curves."""
    disc_radius: float
    continuity: float
    distractor_segments: int
    """In all; a distractor has a third of a curve's segments."""
    curve_contrast: float
    distractor_contrast: float
    border: int = 1


SETTINGS = {
    32: Settings(2, 0.5, (1,), 7, 1.5, 1.0, 20, curve_contrast=1.5, distractor_contrast=2.0),
    64: Settings(5, 1.0, (1,), 12, 2.5, 1.8, 22, curve_contrast=0.8, distractor_contrast=0.8),
    128: Settings(5, 1.5, (2, 3), 20, 3.0, 1.8, 35, curve_contrast=0.9, distractor_contrast=0.9),
}

_SEED_TRIES, _SEGMENT_TRIES, _DISTRACTOR_TRIES = 3, 3, 5
# shares of 255, in whole numbers: 0.3, 1.8 and 1e-4 of a pixel
_FREE, _CROSSING, _DEAD_END = 76, 459, 1e-4 * FULL
_FULL_IMAGE = 0.01
"""Share of free pixels below which no more distractors are placed."""

Uniform = Callable[[], float]


class Example(NamedTuple):
    """One labelled image."""

    pixels: np.ndarray
    """uint8 [side, side]."""
    label: int
    margin: int
    """Of its segments, as the release's metadata have it."""


class _Mark(NamedTuple):
    """A segment in its place."""

    stamp: Stamp
    at: Point


class _Tip(NamedTuple):
    """The growing end of a curve."""

    pivot: Point
    onward: Onward
    mark: _Mark


@dataclass(frozen=True)
class Drawing:
    """An image without its discs: the same one serves either label."""

    side: int
    margin: int
    canvas: np.ndarray
    """Brightness, 255 for a contrast of 1; float64 [side, side]."""
    curves: tuple[list[Point], list[Point]]
    """Of each curve the first point of its first segment, and of all others the end that lies further on."""
    attempts: int
    """Pairs of curves that were begun until one could be finished."""

    def discs(self, label: int, first: int) -> tuple[Point, Point]:
        """Where the discs are: at the start of curve ``first``, at the end of it (label 1) or of the other one."""
        return self.curves[first][0], self.curves[first if label else 1 - first][-1]

    def pixels(self, label: int, first: int) -> np.ndarray:
        """The image with its discs, uint8 [side, side]."""
        radius = SETTINGS[self.side].disc_radius
        marked = self.canvas
        for centre in self.discs(label, first):
            marked = np.maximum(marked, disc(self.side, centre, radius))
        return stretched(marked)


def examples(
    split: str, count: int | None = None, *, side: Side = 32, level: Level = "hard", seed: int = 0, start: int = 0
) -> Iterator[Example]:
    """The examples ``start`` to ``start + count - 1`` of a split.

    Args:
        split: part of the name of the random streams: no two splits share one.
        count: how many; None: no end.
        side: pixels per row; one of :data:`SETTINGS`.
        level: one of :data:`LEVELS`.
        seed: of the data.
        start: number of the first one.

    Raises:
        ManticoreError: an unknown size or level.
    """
    for index in itertools.count(start) if count is None else range(start, start + count):
        # a text as seed is hashed to 512 bits: 32 would give two of 100,000 examples the same stream
        yield draw_example(random.Random(f"pathfinder{side}/{level}/{seed}/{split}/{index}").random, side, level)


def draw_example(uniform: Uniform, side: Side = 32, level: Level = "hard") -> Example:
    """Draws one example.

    Args:
        uniform: draws from [0, 1), and is all the randomness there is.
        side: pixels per row; one of :data:`SETTINGS`.
        level: one of :data:`LEVELS`.

    Raises:
        ManticoreError: an unknown size or level.
    """
    label, first = _below(2, uniform), _below(2, uniform)
    drawing = draw(uniform, side, level)
    return Example(drawing.pixels(label, first), label, drawing.margin)


@checked("pathfinder")
def draw(uniform: Uniform, side: Side = 32, level: Level = "hard") -> Drawing:
    """Draws two curves and their distractors; arguments and errors as :func:`draw_example`."""
    settings, segments = SETTINGS[side], LEVELS[level]
    margin = settings.margins[_below(len(settings.margins), uniform)]
    shape = Shape(side, settings.length, settings.thickness, margin, settings.continuity, settings.border)
    tools = pen(shape)
    pair, attempts = None, 0
    while pair is None:
        pair, attempts = _pair(tools, settings.seed_distance, segments, uniform), attempts + 1
    field, curves = pair
    canvas = np.zeros((tools.stride, tools.stride))
    for curve in curves:
        _paint(tools, canvas, curve, settings.curve_contrast)
    length = segments // 3
    for _ in range(settings.distractor_segments // length):
        for _ in range(_DISTRACTOR_TRIES):
            grown = _distractor(tools, field, length, uniform)
            if grown is not None:
                field, curve = grown
                _paint(tools, canvas, curve, settings.distractor_contrast)
                break
    inner = slice(tools.padding, -tools.padding)
    points = [[mark.at for mark in curve] for curve in curves]
    return Drawing(side, margin, canvas[inner, inner], (points[0], points[1]), attempts)


class _Field:
    """What is taken already."""

    def __init__(self, tools: Pen, mask: np.ndarray, spread: np.ndarray) -> None:
        self.tools, self.mask, self.spread = tools, mask, spread

    def copy(self) -> _Field:
        return _Field(self.tools, self.mask.copy(), self.spread.copy())

    def crossed_by(self, mark: _Mark) -> bool:
        return bool((_box(self.mask, self.tools, mark.at, mark.stamp.mask) + mark.stamp.mask).max() >= _CROSSING)

    def take(self, mark: _Mark) -> None:
        for array, part in ((self.mask, mark.stamp.mask), (self.spread, mark.stamp.spread)):
            box = _box(array, self.tools, mark.at, part)
            np.maximum(box, part, out=box)

    def blocked(self, edge: int) -> np.ndarray:
        """Pixels that are taken, and all within ``edge`` of the image's edges; bool, padded with what is free."""
        side, padding = self.tools.shape.side, self.tools.padding
        inner = np.ones((side, side), bool)
        inner[edge:-edge, edge:-edge] = self.mask[padding:-padding, padding:-padding][edge:-edge, edge:-edge] > _FREE
        return np.pad(inner, padding)


def _pair(tools: Pen, seed_distance: int, segments: int, uniform: Uniform) -> tuple[_Field, list[list[_Mark]]] | None:
    """Two curves side by side, or None as soon as one of them cannot go on."""
    tips = _two_seeds(tools, seed_distance, uniform)
    if tips is None:
        return None
    field = _Field(tools, *tools.empty).copy()
    curves = [[tip.mark] for tip in tips]
    for _ in range(segments - 1):
        for number, tip in enumerate(tips):
            grown = _extend(field, tip, uniform)
            if grown is None:
                return None
            tips[number] = grown
            curves[number].append(grown.mark)
    # the published generator leaves out the last segment of the first curve here
    field.take(tips[1].mark)
    return field, curves


def _two_seeds(tools: Pen, seed_distance: int, uniform: Uniform) -> list[_Tip] | None:
    """The first segment of each curve, in the middle of the image."""
    first = _seed(tools, lambda degree: _choice(_central_tails(tools, degree, 2 * seed_distance), uniform), uniform)
    if first is None:
        return None
    row, column = first.mark.at

    def beside(_: int) -> Point:
        angle = math.radians(_below(DEGREES, uniform))
        return round(row + seed_distance * math.sin(angle)), round(column + seed_distance * math.cos(angle))

    second = _seed(tools, beside, uniform)
    return None if second is None else [first, second]


def _distractor(tools: Pen, field: _Field, segments: int, uniform: Uniform) -> tuple[_Field, list[_Mark]] | None:
    """A short curve anywhere, and the field with it; None where it does not fit."""
    blocked = field.blocked(1)
    side = tools.shape.side
    taken = np.count_nonzero(blocked)
    if side * side - taken < _FULL_IMAGE * side * side:
        return None
    tip = _seed(tools, lambda degree: _choice(_free_tails(tools, blocked, degree), uniform), uniform)
    if tip is None:
        return None
    field = field.copy()
    curve = [tip.mark]
    for _ in range(segments - 1):
        tip = _extend(field, tip, uniform)
        if tip is None:
            return None
        curve.append(tip.mark)
    field.take(tip.mark)
    return field, curve


def _seed(tools: Pen, tail: Callable[[int], Point | None], uniform: Uniform) -> _Tip | None:
    """A first segment whose head and pivot are in the image."""
    side = tools.shape.side
    for _ in range(_SEED_TRIES):
        degree = _below(DEGREES, uniform) - DEGREES // 2
        at = tail(degree)
        if at is None:
            return None
        to_head, to_pivot = tools.first_steps(degree)
        head = moved(at, to_head)
        pivot = moved(head, to_pivot)
        if min(*head, *pivot) >= 0 and max(*head, *pivot) < side:
            return _Tip(pivot, tools.onward_from_degree(degree), _Mark(tools.stamp_at_degree(degree), at))
    return None


def _extend(field: _Field, tip: _Tip, uniform: Uniform) -> _Tip | None:
    """The curve's next segment; takes up the room of the last one."""
    tools, onward = field.tools, tip.onward
    pivot = moved(tip.pivot, onward.step)
    position = (pivot[0] + tools.padding) * tools.stride + pivot[1] + tools.padding
    weights = ((FULL - field.spread.ravel().take(onward.offsets + position)) * onward.weights).cumsum()
    total = float(weights[-1])
    if total < _DEAD_END:
        return None
    for _ in range(_SEGMENT_TRIES):
        choice = int(onward.choices[weights.searchsorted(uniform() * total, side="right")])
        end = tools.end(choice)
        mark = _Mark(tools.stamp_at_end(choice), (pivot[0] + end[0], pivot[1] + end[1]))
        if not field.crossed_by(mark):
            field.take(tip.mark)
            return _Tip(pivot, tools.onward_from_end(choice), mark)
    return None


@cache
def _central_tails(tools: Pen, degree: int, edge: int) -> list[Point]:
    """Where a first segment may begin in an empty image, ``edge`` pixels away from its edges."""
    return _free_tails(tools, _Field(tools, *tools.empty).blocked(edge), degree)


def _free_tails(tools: Pen, blocked: np.ndarray, degree: int) -> list[Point]:
    """Where a first segment of a direction may begin."""
    side, padding = tools.shape.side, tools.padding
    footprint = tools.footprint(degree)
    if not footprint:
        return []
    taken = np.zeros((side, side), bool)
    for row, column in footprint:
        taken |= blocked[padding + row : padding + row + side, padding + column : padding + column + side]
    rows, columns = np.nonzero(~taken)
    return list(zip(rows.tolist(), columns.tolist()))


def _paint(tools: Pen, canvas: np.ndarray, curve: list[_Mark], contrast: float) -> None:
    for mark in curve:
        box = _box(canvas, tools, mark.at, mark.stamp.stroke)
        np.maximum(box, mark.stamp.stroke * contrast, out=box)


def _box(array: np.ndarray, tools: Pen, at: Point, part: np.ndarray) -> np.ndarray:
    """The view of a padded array that ``part`` covers with its middle at ``at``."""
    size = part.shape[0]
    corner = tools.padding - size // 2
    row, column = at[0] + corner, at[1] + corner
    return array[row : row + size, column : column + size]


def _choice(points: list[Point], uniform: Uniform) -> Point | None:
    return points[_below(len(points), uniform)] if points else None


def _below(count: int, uniform: Uniform) -> int:
    return int(uniform() * count)
