"""Genomes as integers and as text, with what is legal where; :mod:`manticore.stacks.genome` says what they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from manticore.errors import ManticoreError
from manticore.registry import did_you_mean
from manticore.stacks.catalogue import family, fits, shareable
from manticore.stacks.configuration import Norm, Residual
from manticore.stacks.liv.codes import POOL, is_operator

VERSION = "v1"
NORMS: tuple[str, ...] = get_args(Norm)
RESIDUALS: tuple[str, ...] = get_args(Residual)
STRATEGIES = ((1, 2), (1, 2, 3))
"""Of featurizer groups and of feature groups."""
_GROUPS = 9
"""That a genome may name whatever its depth."""
FIELDS = ("class", "featurizer group", "featurizer strategy", "feature group", "feature strategy")
_EXAMPLE = "Fix: for instance 21211-31112-21221-32112"


class Liv(NamedTuple):
    """One five of a genome."""

    operator: int
    """1 to 17 of the pool, or an operator's five digits."""
    featurizer_group: int = 1
    featurizer_strategy: int = 1
    feature_group: int = 1
    feature_strategy: int = 1

    def __str__(self) -> str:
        return ("" if max(self) < 10 else ".").join(map(str, self))

    @property
    def name(self) -> str:
        """Of the layer, in the registry."""
        return POOL[self.operator - 1] if self.operator <= len(POOL) else "liv"

    @property
    def options(self) -> dict[str, Any]:
        """Of the layer: the code of an operator that is none of the pool."""
        return {} if self.operator <= len(POOL) else {"code": str(self.operator)}

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name if self.operator <= len(POOL) else str(self.operator)

    @property
    def family(self) -> str:
        """Within which features can be shared."""
        return family(self.name, self.options)

    def fits(self, maker: Liv) -> bool:
        """Whether it can take features of another one."""
        return fits(self.name, self.options, maker.name, maker.options)

    def features(self, strategy: int) -> tuple[str, ...]:
        """What a strategy shares; empty where this class has none of it."""
        return () if strategy == 1 else shareable(self.name, self.options, strategy)


@dataclass(frozen=True)
class Genome:
    """A stack of LIVs.

    Raises:
        ManticoreError: no LIVs, or an illegal value, with its position and what is legal there.
    """

    livs: tuple[Liv, ...]
    norm: str = "rms"
    """As ``StackConfig`` has it."""
    residual: str = "pre"
    """As ``StackConfig`` has it."""

    def __post_init__(self) -> None:
        if not self.livs:
            raise ManticoreError(f"genome: no LIVs (expected five integers for each). {_EXAMPLE}")
        for name, given, legal in (("norm", self.norm, NORMS), ("residual", self.residual, RESIDUALS)):
            if given not in legal:
                raise ManticoreError(f"genome: {name} is {given!r}{did_you_mean(given, list(legal))}")
        for index, liv in enumerate(self.livs):
            for field, value in enumerate(liv):
                if (expected := _refusal(field, value, len(self.livs))) is not None:
                    raise ManticoreError(
                        f"genome: LIV {index + 1}, integer {field + 1} ({FIELDS[field]}) is {value} "
                        f"(expected {expected}). Fix: one of these"
                    )

    @classmethod
    def read(cls, text: str) -> Genome:
        """From its text.

        Raises:
            ManticoreError: a wrong length, or an illegal value, with its position and what is legal there.
        """
        header, _, fives = text.strip().rpartition("_")
        return cls(tuple(_read_five(index, five) for index, five in enumerate(fives.split("-"))), *_read_header(header))

    def __str__(self) -> str:
        header = "" if (self.norm, self.residual) == ("rms", "pre") else f"{VERSION}.{self.norm}.{self.residual}_"
        return header + "-".join(map(str, self.livs))


def _refusal(field: int, value: int, depth: int) -> str | None:
    """What is expected of an integer that is illegal."""
    if field == 0:
        legal = 1 <= value <= len(POOL) or is_operator(value)
        return None if legal else f"1 to {len(POOL)}, or the five digits of a legal operator"
    if field in (2, 4):
        legal_ones = STRATEGIES[field // 4]
        return None if value in legal_ones else f"one of {', '.join(map(str, legal_ones))}"
    groups = max(_GROUPS, depth)
    return None if 1 <= value <= groups else f"1 to {groups}"


def _read_header(header: str) -> tuple[str, ...]:
    if not header:
        return ()
    version, *rest = header.split(".")
    if version != VERSION or len(rest) != 2:
        raise ManticoreError(
            f"genome: the header is {header!r} (expected {VERSION}.NORM.RESIDUAL). Fix: for instance {VERSION}.rms.pre_"
        )
    return tuple(rest)


def _read_five(index: int, five: str) -> Liv:
    numbers = five.split(".") if "." in five else list(five)
    wrong = next((k for k, each in enumerate(numbers) if re.fullmatch("[0-9]{1,5}", each) is None), None)
    if wrong is not None:
        raise ManticoreError(
            f"genome: LIV {index + 1}, integer {wrong + 1} is {numbers[wrong][:20]!r} (expected a number). {_EXAMPLE}"
        )
    if len(numbers) != len(FIELDS):
        dots = ", with dots where one has several digits" if "." not in five else ""
        raise ManticoreError(
            f"genome: LIV {index + 1} has {len(numbers)} integers (expected {len(FIELDS)}{dots}). {_EXAMPLE}"
        )
    return Liv(*map(int, numbers))
