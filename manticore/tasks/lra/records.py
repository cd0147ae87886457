"""Records of released files and data sets, as somebody else wrote them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from manticore.errors import ManticoreError


def label_of(value: Any, classes: int, where: str, fix: str) -> int:
    """The class, 0 to ``classes - 1``, that a number or a text of one stands for.

    Raises:
        ManticoreError: it stands for none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1
    if number not in range(classes):
        shown = value[:20].decode("latin-1") if isinstance(value, bytes) else value
        raise ManticoreError(f"{where}: label out of range (got {shown!r}, expected 0 to {classes - 1}). Fix: {fix}")
    return int(number)


def refuse_missing(needed: Collection[str], columns: Collection[str], where: str, fix: str) -> None:
    """Refuse a table without a column that is needed.

    Raises:
        ManticoreError: it names the first that is missing.
    """
    missing = next((column for column in needed if column not in columns), None)
    if missing is not None:
        listed = ", ".join(columns) or "an empty file"
        raise ManticoreError(f"{where}: no column {missing} (got {listed}, expected {', '.join(needed)}). Fix: {fix}")
