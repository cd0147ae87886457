"""Lists of layers out of a set of primitives, as Composer searches them: Z primitives and n layers make Z^n designs.

Shapes: D width.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from manticore.components.weight_files import MOST_LAYERS
from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Count, Depth, Primitives, Size
from manticore.search.designs.space import Design
from manticore.stacks.catalogue import measured
from manticore.stacks.configuration import StackConfig

LETTERS = {
    "attention": "A",
    "mh-attention": "A",
    "grouped-query-attention": "A",
    "swiglu": "M",
    "mlp": "M",
    "moe-mlp": "E",
    "mamba": "S",
    "mamba-2": "S",
}
"""Layer → its letter where no other layer of the space has it: A and M as Composer writes them, S for state spaces."""

_WIDTHS_TRIED = 256


@dataclass(frozen=True)
class Primitive:
    """A layer that lists are made of."""

    letter: str
    name: str
    """As ``manticore ls layers`` has it."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> Any:
        """As :class:`~manticore.StackConfig` holds it."""
        return [self.name, dict(self.options)] if self.options else self.name


class LayerListSpace:
    """All lists of ``layers`` layers, each one of the primitives.

    Args:
        primitives: names of layers, each alone or in a pair with its options; or a mapping of letters to such.
        layers: n, of a whole list.
        width: D of a whole list; shorter lists have a width in proportion.
        grown_by: layers that an incremental method adds per round: lists of a multiple of so many layers are designs
            too, though only whole ones can be the best. None: whole lists only.

    Raises:
        ManticoreError: an unknown primitive or option, one that is given twice, letters that are none, no layers, a
            width that a primitive cannot have.
    """

    @checked("layer lists")
    def __init__(
        self,
        *,
        primitives: Primitives,
        layers: Depth,
        width: Size = 64,
        grown_by: Count | None = None,
    ) -> None:
        if grown_by is not None and layers % grown_by:
            raise ManticoreError(
                f"layer lists: grown_by is {grown_by} (expected a divisor of the {layers} layers). "
                f"Fix: grown_by={next(n for n in range(min(grown_by, layers), 0, -1) if layers % n == 0)}"
            )
        self.primitives = _primitives(primitives)
        self.layers, self.width, self.grown_by = layers, width, grown_by
        self._indices = {each.letter: index for index, each in enumerate(self.primitives)}
        self._letters = all(len(letter) == 1 for letter in self._indices)
        for each in self.primitives:
            try:
                measured(each.name, width, 1, each.options)
            except ManticoreError as error:
                raise ManticoreError(f"layer lists: {error}") from error

    @property
    def key(self) -> dict[str, Any]:
        """The arguments that make this space again, and its kind."""
        key: dict[str, Any] = {
            "kind": "layers",
            "primitives": {each.letter: each.entry for each in self.primitives},
            "layers": self.layers,
            "width": self.width,
        }
        return key if self.grown_by is None else {**key, "grown_by": self.grown_by}

    @property
    def values(self) -> Sequence[Sequence[int]]:
        """The indices of all primitives, for every layer."""
        return [range(len(self.primitives))] * self.layers

    @property
    def labels(self) -> Sequence[tuple[str, Sequence[str | int]]]:
        """``layer 01``, from the bottom, and the primitives' letters."""
        letters = [each.letter for each in self.primitives]
        return [(f"layer {n:02}", letters) for n in range(1, self.layers + 1)]

    @property
    def size(self) -> int:
        """Z^n."""
        return len(self.primitives) ** self.layers

    def designs(self) -> Iterator[Design]:
        """All lists."""
        return itertools.product(*self.values)

    def problem(self, design: Design) -> str | None:
        """None for lists of legal indices."""
        wrong = next((index for index, value in enumerate(design) if value not in range(len(self.primitives))), None)
        if wrong is not None:
            return f"position {wrong + 1} is {design[wrong]} (expected 0 to {len(self.primitives) - 1})"
        return None if len(design) in self._lengths else f"{len(design)} layers"

    def repaired(self, design: Design, draws: random.Random) -> Design:
        """Illegal values are drawn again; what is too long is cut, what is too short is filled with draws."""
        return self.repaired_to(design, len(design) if len(design) in self._lengths else self.layers, draws)

    def repaired_to(self, design: Design, layers: int, draws: random.Random) -> Design:
        """The same, with so many layers."""
        among = range(len(self.primitives))
        legal = [value if value in among else draws.choice(among) for value in design[:layers]]
        return tuple(legal + draws.choices(among, k=layers - len(legal)))

    def spelled(self, design: Design) -> str:
        """A letter per layer, ``AAMMMM``; with more than 26 primitives their numbers, ``31-0-2``."""
        return ("" if self._letters else "-").join(self.primitives[index].letter for index in design)

    def read(self, text: str) -> Design:
        """From its letters; ``2A4M`` is read as well.

        Raises:
            ManticoreError: a letter that stands for no primitive, with its position, or a wrong number of layers.
        """
        design: list[int] = []
        for letter in runs_written_out(text) if self._letters else text.split("-"):
            if letter not in self._indices:
                known = ", ".join(f"{each.letter} {each.name}" for each in self.primitives)
                raise ManticoreError(
                    f"design {text!r}: position {len(design) + 1} is {letter!r} (expected one of {known}). "
                    "Fix: one of these letters"
                )
            design.append(self._indices[letter])
        if len(design) not in self._lengths:
            wanted = " or ".join(map(str, self._lengths))
            raise ManticoreError(f"design {text!r}: {len(design)} layers (expected {wanted}). Fix: a list of as many")
        return tuple(design)

    def config(self, design: Design, *, vocab_size: int, positions: int) -> StackConfig:
        """The stack: at the width of the search, a part of a list at one in proportion."""
        return StackConfig(
            layers=[self.primitives[index].entry for index in design],
            hidden_size=self.width_of(len(design)),
            vocab_size=vocab_size,
            max_position_embeddings=positions,
        )

    def width_of(self, layers: int) -> int:
        """The width that is nearest to the same width per layer and that all primitives can have.

        Raises:
            ManticoreError: there is none.
        """
        if layers == self.layers:
            return self.width
        wanted = self.width * layers / self.layers
        nearest = sorted(
            range(max(1, round(wanted) - _WIDTHS_TRIED), round(wanted) + _WIDTHS_TRIED + 1),
            key=lambda width: (abs(width - wanted), width),
        )
        for width in nearest:
            if all(self._fits(each, width) for each in self.primitives):
                return width
        raise ManticoreError(
            f"layer lists: no width near {wanted:.0f}, which {layers} layers would have in proportion, suits all "
            "primitives. Fix: fewer heads"
        )

    @property
    def _lengths(self) -> Sequence[int]:
        """Of legal lists."""
        return [self.layers] if self.grown_by is None else range(self.grown_by, self.layers + 1, self.grown_by)

    @staticmethod
    def _fits(primitive: Primitive, width: int) -> bool:
        try:
            measured(primitive.name, width, 1, primitive.options)
        except ManticoreError:
            return False
        return True


def runs_written_out(text: str) -> list[str]:
    """``2A4M`` → A, A, M, M, M, M; what is no letter stays, for whoever knows what is expected there."""
    letters: list[str] = []
    for count, letter in re.findall(r"(\d*)(\D|$)", text.strip()):
        if count and not letter:
            letters.append(count)
        elif letter:
            letters += [letter] * min(int(count or 1), MOST_LAYERS)
    return letters


def lettered(names: Sequence[str]) -> list[str]:
    """A letter for each of several layers: the usual one, else the first free one of its name, else any free one.

    With more layers than letters, numbers.
    """
    if len(names) > len(ascii_uppercase):
        return [str(index) for index in range(len(names))]
    found: dict[int, str] = {}
    # the usual letters first, so that the order of the names does not take them away
    for usual in (True, False):
        for index, name in enumerate(names):
            wished = LETTERS.get(name, "") if usual else [*(c for c in name.upper() if c.isalpha()), *ascii_uppercase]
            free = next((letter for letter in wished if letter not in found.values()), None)
            if index not in found and free is not None:
                found[index] = free
    return [found[index] for index in range(len(names))]


def _primitives(given: Primitives) -> list[Primitive]:
    pairs: list[tuple[str, dict[str, Any]]] = []
    for each in given.values() if isinstance(given, Mapping) else given:
        name, options = (each, {}) if isinstance(each, str) else (*each, {})[:2]
        pairs.append((name, dict(options)))
    twice = next((name for index, (name, _) in enumerate(pairs) if pairs[index] in pairs[:index]), None)
    if twice is not None:
        raise ManticoreError(f"layer lists: the primitive {twice!r} is given twice. Fix: once, or with other options")
    letters = list(given) if isinstance(given, Mapping) else lettered([name for name, _ in pairs])
    if isinstance(given, Mapping):
        wrong = next((each for each in letters if not re.fullmatch("[A-Z]", str(each))), None)
        if wrong is not None and letters != [str(index) for index in range(len(letters))]:
            raise ManticoreError(
                f"layer lists: {wrong!r} is no letter for {pairs[letters.index(wrong)][0]!r} (expected one of A to Z). "
                f"Fix: for instance {lettered([name for name, _ in pairs])[letters.index(wrong)]!r}"
            )
    return [Primitive(letter, name, options) for letter, (name, options) in zip(letters, pairs)]
