"""Shapes of what a forward pass is given: a wrong one ends in one line, not inside a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manticore.errors import ManticoreError

Size = int | str | tuple[int, ...]


def expect_shape(name: str, value: Any, expected: Sequence[Size], fix: str, where: str = "forward") -> None:
    """Refuse what is not a tensor of a shape.

    Args:
        name: of the argument.
        value: what was given.
        expected: sizes; a name stands for any size from 1 on, several numbers for one of them.
        fix: what to do.
        where: what the message begins with.

    Raises:
        ManticoreError: it is of another shape.
    """
    if not isinstance(value, Tensor) or not _fits(value.shape, expected):
        what = f"has shape {list(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
        sizes = [" or ".join(map(str, size)) if isinstance(size, tuple) else str(size) for size in expected]
        raise ManticoreError(f"{where}: {name} {what} (expected [{', '.join(sizes)}]). Fix: {fix}")


def _fits(shape: Sequence[int], expected: Sequence[Size]) -> bool:
    if len(shape) != len(expected):
        return False
    # numbers are compared one by one: a compiled graph cannot make text of sizes that vary, nor find them in a tuple
    for size, wanted in zip(shape, expected):
        if isinstance(wanted, str):
            fits = size >= 1
        else:
            fits = any(size == each for each in (wanted if isinstance(wanted, tuple) else (wanted,)))
        if not fits:
            return False
    return True
