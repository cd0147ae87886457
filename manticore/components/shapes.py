"""Shapes of what a forward pass is given: a wrong one ends in one line, not inside a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manticore.errors import ManticoreError


def expect_shape(name: str, value: Any, expected: Sequence[int | str], fix: str, where: str = "forward") -> None:
    """Refuse what is not a tensor of a shape.

    Args:
        name: of the argument.
        value: what was given.
        expected: sizes; a name stands for any size from 1 on, ``"1 or B"`` for two sizes.
        fix: what to do.
        where: what the message begins with.

    Raises:
        ManticoreError: it is of another shape.
    """
    if not isinstance(value, Tensor) or not _fits(value.shape, expected):
        what = f"has shape {list(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
        raise ManticoreError(f"{where}: {name} {what} (expected [{', '.join(map(str, expected))}]). Fix: {fix}")


def _fits(shape: Sequence[int], expected: Sequence[int | str]) -> bool:
    if len(shape) != len(expected):
        return False
    for size, wanted in zip(shape, expected):
        allowed = [int(part) for part in str(wanted).split(" or ") if part.isdecimal()]
        if size not in allowed and (allowed or size < 1):
            return False
    return True
