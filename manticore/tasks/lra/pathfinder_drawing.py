"""How the segments and discs of Pathfinder images are drawn, and what a segment may follow.

Source: the published rules of the generator (Linsley et al. 2018, arXiv 1805.08315) with the settings of Tay et al.
2020, arXiv 2011.04006. Lines and discs are drawn at twice the size and reduced by a Lanczos filter, whose faint ripples
are part of the images. Points are (row, column); an angle t leads to row + sin t, column + cos t, rounded up. L is the
length of a segment, m the margin around it: between the segments of a curve there is a gap of 2m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageDraw

SCALE = 2
"""Size of what is drawn over its size in the image, in each direction."""
FULL = 255
DEGREES = 360

_AWAY = 1 << 10
"""Added before rounding down, so that 1e-16 less than a whole number is that number."""

Point = tuple[int, int]
Step = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """What curves of an image of ``side`` x ``side`` pixels are made of; all else in pixels of the image."""

    side: int
    length: int
    thickness: float
    margin: int
    continuity: float
    """How straight curves are: 1 allows turns below 90 degrees, 1.8 below 50."""
    border: int
    """Pixels along the edges that no segment may touch."""


@dataclass(frozen=True)
class Stamp:
    """One segment, as it is put down; its first point is in the middle."""

    stroke: np.ndarray
    """Brightness, uint8 [S, S]."""
    mask: np.ndarray
    """What the segment and the margin around it take up, int16 [S, S], 255 for all of a pixel."""
    spread: np.ndarray
    """The mask, wider by the margin; int16 [S + 2m, S + 2m]."""


@dataclass(frozen=True)
class Onward:
    """What may come after a segment of a given direction."""

    step: Step
    """From the pivot before it to the next one, before rounding."""
    offsets: np.ndarray
    """Where the next end may be: positions in the flat, padded field, relative to the pivot; int64 [C]."""
    weights: np.ndarray
    """Of each, where nothing is in the way; float64 [C]."""
    choices: np.ndarray
    """Number of each among the ends around a pivot; int64 [C]."""


class Pen:
    """Everything about segments of one shape, drawn once and kept."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.reach = shape.length + math.ceil(shape.thickness) + shape.margin
        # a pivot is at most m + 1 pixels outside of the image, and the next end L + m further
        self.padding = shape.length + 2 * shape.margin + 4
        self.stride = shape.side + 2 * self.padding
        self._ends, self._end_angles = self._ends_around_a_pivot()

    def end(self, choice: int) -> Point:
        """The end ``choice`` relative to the pivot."""
        return self._ends[choice]

    @cache  # noqa: B019 (pens live as long as the process)
    def stamp_at_end(self, choice: int) -> Stamp:
        """The segment from the end ``choice`` back towards the pivot."""
        return self._stamp(self._end_angles[choice] + math.pi)

    @cache  # noqa: B019
    def stamp_at_degree(self, degree: int) -> Stamp:
        """The segment from a tail into a direction."""
        return self._stamp(math.radians(degree))

    @cache  # noqa: B019
    def onward_from_end(self, choice: int) -> Onward:
        """What may come after the segment to the end ``choice``."""
        return self._onward(self._end_angles[choice])

    @cache  # noqa: B019
    def onward_from_degree(self, degree: int) -> Onward:
        """What may come after a first segment."""
        return self._onward(math.radians(degree))

    @cache  # noqa: B019
    def first_steps(self, degree: int) -> tuple[Step, Step]:
        """From the tail of a first segment to its head, and from there to its pivot."""
        angle = math.radians(degree)
        length, margin = self.shape.length, self.shape.margin
        return step(angle, length), step(angle + math.pi, length + margin)

    @cache  # noqa: B019
    def footprint(self, degree: int) -> list[Point]:
        """Pixels that a first segment takes up wholly, relative to the pixel up and left of its tail.

        Empty if no curve begins in this direction. The published generator looks for free places by a dilation that
        is undefined where the whole footprint lies outside of the image, and gives up if that happens in any corner.
        As its footprints lie one pixel down and right of their place, in images of 32 pixels only directions up and
        left remain. The second of the two curves is placed otherwise, in any direction.
        """
        mask = self.stamp_at_degree(degree).mask
        half = self.shape.length + self.shape.margin
        rows, columns = np.nonzero(mask == FULL)
        points = [(int(row) - self.reach + 1, int(column) - self.reach + 1) for row, column in zip(rows, columns)]
        points = [point for point in points if max(map(abs, point)) <= half]
        corners = [(down, right) for down in (-1, 1) for right in (-1, 1)]
        seen = all(any(row * down <= 0 and column * right <= 0 for row, column in points) for down, right in corners)
        return points if seen else []

    @cached_property
    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """Mask and spread of an image with nothing but its border; int16, padded."""
        side, padding, border = self.shape.side, self.padding, self.shape.border
        mask = np.full((side, side), FULL, np.int16)
        mask[border:-border, border:-border] = 0
        spread = np.full((self.stride, self.stride), FULL, np.int16)
        spread[padding:-padding, padding:-padding] = dilated(mask, self.shape.margin)
        return np.pad(mask, padding), spread

    def _ends_around_a_pivot(self) -> tuple[list[Point], list[float]]:
        """The distinct pixels on the circle where the next segment may end, about one per pixel of its length."""
        radius = self.shape.length + self.shape.margin
        samples = np.radians(np.arange(0, 360, 360 / (2 * math.pi * radius)))
        points = np.stack([np.sin(samples), np.cos(samples)], axis=1) * radius
        ends = np.unique(np.floor(points + _AWAY).astype(np.int64) - _AWAY, axis=0)
        return [(int(row), int(column)) for row, column in ends], np.arctan2(ends[:, 0], ends[:, 1]).tolist()

    def _onward(self, angle: float) -> Onward:
        turn = np.abs(np.angle(np.exp(1j * (np.array(self._end_angles) - angle))))
        weights = np.cos(np.minimum(turn * self.shape.continuity, math.pi / 2)) ** 2
        # cos(pi / 2) is not quite zero
        choices = np.flatnonzero(weights > 1e-20)
        ends = np.array(self._ends)[choices]
        way = step(angle, self.shape.length + 2 * self.shape.margin)
        return Onward(way, ends[:, 0] * self.stride + ends[:, 1], weights[choices], choices)

    def _stamp(self, angle: float) -> Stamp:
        shape = self.shape
        size = 2 * self.reach * SCALE + 1
        middle = self.reach * SCALE
        row, column = moved((middle, middle), step(angle, shape.length * SCALE))
        image = Image.new("L", (size, size))
        width = round(shape.thickness * SCALE)
        ImageDraw.Draw(image).line([(middle, middle), (column, row)], fill=FULL, width=width)
        line = np.asarray(image)
        mask = reduced(dilated(line, shape.margin * SCALE), 2 * self.reach + 1).astype(np.int16)
        return Stamp(
            reduced(line, 2 * self.reach + 1), mask, dilated(np.pad(mask, shape.margin), shape.margin).astype(np.int16)
        )


@cache
def pen(shape: Shape) -> Pen:
    """The one pen of a shape."""
    return Pen(shape)


def step(angle: float, distance: float) -> Step:
    """A way of ``distance`` pixels at an angle in radians."""
    return distance * math.sin(angle), distance * math.cos(angle)


def moved(point: Point, way: Step) -> Point:
    """Where a way leads, rounded up; also where 4e-16 too much come from a sine: the published generator does so."""
    return math.ceil(point[0] + way[0]), math.ceil(point[1] + way[1])


def dilated(image: np.ndarray, radius: int) -> np.ndarray:
    """The largest value within ``radius`` of each pixel of ``image`` [H, W]; nothing is outside of it."""
    height, width = image.shape
    padded = np.pad(image, radius)
    result = np.zeros_like(image)
    for row in range(-radius, radius + 1):
        for column in range(-radius, radius + 1):
            if row * row + column * column <= radius * radius:
                part = padded[radius + row : radius + row + height, radius + column : radius + column + width]
                np.maximum(result, part, out=result)
    return result


def reduced(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` (uint8) at ``side`` x ``side`` pixels, by a Lanczos filter."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def disc(side: int, centre: Point, radius: float) -> np.ndarray:
    """A disc of brightness 255 in an image of ``side`` x ``side`` pixels, uint8."""
    rows, columns = np.ogrid[: side * SCALE, : side * SCALE]
    distance = (rows - centre[0] * SCALE) ** 2 + (columns - centre[1] * SCALE) ** 2
    return reduced(np.where(distance <= (radius * SCALE) ** 2, FULL, 0).astype(np.uint8), side)


def stretched(image: np.ndarray) -> np.ndarray:
    """Brightness from the darkest to the brightest pixel as 0 to 255; uint8."""
    low, high = image.min(), image.max()
    return ((image - low) * (FULL / (high - low)) + 0.5).astype(np.uint8)
