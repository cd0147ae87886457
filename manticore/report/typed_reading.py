"""JSON values as the types of dataclasses, for records that somebody else may have written.

A number that is not finite reads as ``None`` where that is allowed, and characters that cannot be printed (control
characters, direction overrides) are replaced, so that what reads these values can show them anywhere.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from manticore.errors import ManticoreError
from manticore.stages.records import Plain


@dataclass(frozen=True)
class TypedReader:
    """Reads values of one file."""

    where: str
    """The file, for messages."""
    fix: str
    """What to do where it is damaged."""

    def read(self, kind: Any, value: Any, at: str = "") -> Any:
        """``value`` as the type ``kind``: a dataclass, tuple, dict, optional or scalar of JSON.

        Args:
            kind: the type; keys of an object that it does not know are ignored. ``Any`` is given as it is, and a class
                whose objects are no objects in JSON reads them itself, ``from_json(reader, value, at)``.
            value: as JSON gives it.
            at: its place in the file, for messages.

        Raises:
            ManticoreError: a value of another kind.
        """
        if kind == Plain:
            return self._plain(value, at)
        if get_origin(kind) in (Union, types.UnionType):
            if value is None:
                return None
            kind = next(arm for arm in get_args(kind) if arm is not type(None))
            if kind in (int, float) and isinstance(value, float) and not math.isfinite(value):
                return None
        if kind is Any:
            return value
        if hasattr(kind, "from_json"):
            return kind.from_json(self, value, at)
        if dataclasses.is_dataclass(kind):
            return self._object(kind, value, at)
        if get_origin(kind) is tuple:
            if not isinstance(value, list | tuple):
                raise self.wrong(at, value, "a list")
            item_kind = get_args(kind)[0]
            return tuple(self.read(item_kind, item, f"{at}[{i}]") for i, item in enumerate(value))
        if get_origin(kind) is dict:
            if not isinstance(value, Mapping):
                raise self.wrong(at, value, "an object")
            item_kind = get_args(kind)[1]
            named = {printable(str(key)): item for key, item in value.items()}
            return {key: self.read(item_kind, item, f"{at}.{key}") for key, item in named.items()}
        return self._scalar(kind, value, at)

    def wrong(self, at: str, got: object, expected: str) -> ManticoreError:
        """What to raise for a value of a wrong kind."""
        place = f"{self.where}: {at}" if at else self.where
        return ManticoreError(f"{place}: wrong value (got {got!r:.60}, expected {expected}). Fix: {self.fix}")

    def _object(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, Mapping):
            raise self.wrong(at, value, "an object")
        hints = _fields(kind)
        # A key that is null says no more than a key that is missing: the default stands.
        given = {key: value[key] for key in hints if value.get(key) is not None}
        prefix = f"{at}." if at else ""
        return kind(**{key: self.read(hints[key], item, prefix + key) for key, item in given.items()})

    def _plain(self, value: Any, at: str) -> Plain:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return printable(value)
        if isinstance(value, float) and not math.isfinite(value):
            return None
        number: Plain = self._scalar(float, value, at)
        return value if isinstance(value, int) else number

    def _scalar(self, kind: type, value: Any, at: str) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # No count of a run needs more, and Python's integers go on where floats end.
        is_number = is_number and abs(value) < 1e300
        if kind is str and isinstance(value, str):
            return printable(value)
        if kind is bool and isinstance(value, bool):
            return value
        if kind is float and is_number:
            return float(value)
        if kind is int and is_number and value == int(value):
            return int(value)
        expected = {str: "a text", bool: "true or false", float: "a number", int: "a whole number"}[kind]
        raise self.wrong(at, value, expected)


@cache
def _fields(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def printable(text: str) -> str:
    """``text`` on one line, with U+FFFD for what cannot be shown (also what XML and UTF-8 cannot carry)."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
