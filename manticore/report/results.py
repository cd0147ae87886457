"""Typed reading of ``results.json``, the record that a run leaves behind and all the report knows.

Every part is optional: a run may have stopped before it. A number that is not finite reads as ``None``, and
characters that cannot be printed (control characters, direction overrides) are replaced, so that what reads
these values can show them anywhere. K components, N blocks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from manticore.errors import ManticoreError
from manticore.file_names import RESULTS, SCHEMA_VERSION
from manticore.stages.align import AlignRecord
from manticore.stages.combine import CombineRecord, ComponentRecord, TaskInfo
from manticore.stages.compare import CompareRecord
from manticore.stages.discretize import DiscretizeRecord
from manticore.stages.distill import DistillRecord
from manticore.stages.finetune import FinetuneRecord, SavedModel
from manticore.stages.records import Plain, PluggedRecord, Weights
from manticore.stages.search import SearchRecord


@dataclass(frozen=True)
class Results:
    name: str = ""
    created: str = ""
    status: str = ""
    seed: int | None = None
    components: tuple[ComponentRecord, ...] = ()
    task: TaskInfo | None = None
    combine: CombineRecord | None = None
    align: AlignRecord | None = None
    search: SearchRecord | None = None
    discretize: DiscretizeRecord | None = None
    distill: DistillRecord | None = None
    finetune: FinetuneRecord | None = None
    compare: CompareRecord | None = None
    model: SavedModel | None = None
    stages: dict[str, PluggedRecord] = field(default_factory=dict)
    """Of other packages."""

    @property
    def num_components(self) -> int:
        if self.components:
            return len(self.components)
        if self.combine and self.combine.boundaries:
            return len(self.combine.boundaries)
        if self.weights:
            return len(self.weights[0])
        return max((-1, *self.path, *(k for path in self._looked_at for k in path))) + 1

    @property
    def num_blocks(self) -> int:
        if self.combine and self.combine.num_blocks:
            return self.combine.num_blocks
        if self.combine and self.combine.boundaries:
            return len(self.combine.boundaries[0]) - 1
        return len(self.weights) or len(self.path) or max((len(path) for path in self._looked_at), default=0)

    @property
    def _looked_at(self) -> list[tuple[int, ...]]:
        """The paths that the search has scored."""
        search = self.search or SearchRecord()
        return [candidate.path for candidate in (*search.candidates, *search.shared)]

    @property
    def component_names(self) -> list[str]:
        """One name per component, invented where the record has none."""
        named = [c.name for c in self.components]
        named += [""] * (self.num_components - len(named))
        return [name or f"component {k}" for k, name in enumerate(named)]

    @property
    def path(self) -> tuple[int, ...]:
        """The component that each block keeps; empty before the search has ended."""
        if self.discretize and self.discretize.path:
            return self.discretize.path
        return self.search.path if self.search else ()

    @property
    def weights(self) -> Weights:
        """The last known mixture weights [N, K]; empty before a search."""
        if self.search is None:
            return ()
        logged = (step.weights for step in reversed(self.search.history) if step.weights)
        return self.search.weights or next(logged, ())


def read_results(path: str | Path) -> Results:
    """Read ``results.json``; ``path`` may also be the run folder that holds it.

    Raises:
        ManticoreError: no such file, not JSON, an unknown schema version, or a value of a wrong kind.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS
    try:
        # a pipe would be waited for
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManticoreError(f"{path}: no such file. Fix: give the folder of a run that has started") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManticoreError(f"{path}: cannot be read as JSON ({reason}). Fix: run the stage again") from error
    return parse_results(raw, where=str(path))


def parse_results(raw: Mapping[str, Any], *, where: str = "results") -> Results:
    """The same from a mapping already in memory; keys that are not known are ignored.

    Raises:
        ManticoreError: an unknown schema version, or a value of a wrong kind.
    """
    if not isinstance(raw, Mapping):
        raise _wrong(where, "", raw, "an object")
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ManticoreError(
            f"{where}: schema_version: unknown version (got {version!r:.40}, expected {SCHEMA_VERSION}). "
            "Fix: use the version of manticore that wrote this run"
        )
    results: Results = _read(Results, raw, where, "")
    _check_shapes(results, where)
    return results


def as_results(results: Results | Mapping[str, Any]) -> Results:
    """``results`` itself, or parsed where it is still a plain mapping."""
    return results if isinstance(results, Results) else parse_results(results)


def _check_shapes(results: Results, where: str) -> None:
    """Refuse records whose tables do not fit together; a figure of them would show something wrong."""
    k, n = results.num_components, results.num_blocks

    def expect(ok: bool, at: str, expected: str, got: object) -> None:
        if not ok:
            raise _wrong(where, at, got, expected)

    if results.combine and results.combine.boundaries:
        bounds = results.combine.boundaries
        expect(len(bounds) == k, "combine.boundaries", f"{k} rows, one per component", f"{len(bounds)} rows")
        for row in bounds:
            expect(len(row) == n + 1, "combine.boundaries", f"rows of {n + 1} numbers", f"{len(row)} numbers")
    tables = [("search.weights", results.search.weights)] if results.search else []
    tables += [("search.history.weights", step.weights) for step in (results.search or SearchRecord()).history]
    for at, table in tables:
        if table:
            shape = f"{len(table)}x{len(table[0])}"
            fits = len(table) == n and all(len(row) == k for row in table)
            expect(fits, at, f"{n}x{k} (blocks x components)", shape)
    for at, path in (("search.path", results.search and results.search.path), ("path", results.path)):
        if path:
            expect(len(path) == n and all(0 <= c < k for c in path), at, f"{n} indices below {k}", list(path))
    chosen = [candidate.path for candidate in results.search.candidates if candidate.chosen] if results.search else []
    expect(len(chosen) <= 1, "search.candidates", "at most one that is chosen", f"{len(chosen)} chosen")
    if chosen and results.search and results.search.path:
        path = results.search.path
        expect(chosen[0] == path, "search.candidates", f"the chosen one to have path {list(path)}", list(chosen[0]))
    search = results.search or SearchRecord()
    listed = {"candidates": search.candidates, "shared": search.shared}
    for at, candidate in ((f"search.{name}", each) for name, found in listed.items() for each in found):
        path = candidate.path
        expect(len(path) == n and all(0 <= c < k for c in path), f"{at}.path", f"{n} indices below {k}", list(path))
        for point in candidate.points:
            expect(point.mark >= 0, f"{at}.points.mark", "a number of twelfths", point.mark)
    compare = results.compare or CompareRecord()
    known = range(max(1, len(compare.budgets)))
    for scored in compare.rows:
        expect(scored.budget in known, "compare.rows.budget", f"an index below {len(known)}", scored.budget)


def _wrong(where: str, at: str, got: object, expected: str) -> ManticoreError:
    place = f"{where}: {at}" if at else where
    return ManticoreError(f"{place}: wrong value (got {got!r:.60}, expected {expected}). Fix: run the stage again")


@cache
def _fields(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read(kind: Any, value: Any, where: str, at: str) -> Any:
    """``value`` as the type ``kind``, which may be a dataclass, tuple, dict, optional or scalar of JSON."""
    if kind == Plain:
        return _plain(value, where, at)
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
        if kind in (int, float) and isinstance(value, float) and not math.isfinite(value):
            return None
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _wrong(where, at, value, "an object")
        hints = _fields(kind)  # type: ignore[arg-type]
        # A key that is null says no more than a key that is missing: the default stands.
        given = {key: value[key] for key in hints if value.get(key) is not None}
        prefix = f"{at}." if at else ""
        return kind(**{key: _read(hints[key], item, where, prefix + key) for key, item in given.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, at, value, "a list")
        item_kind = get_args(kind)[0]
        return tuple(_read(item_kind, item, where, f"{at}[{i}]") for i, item in enumerate(value))
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise _wrong(where, at, value, "an object")
        item_kind = get_args(kind)[1]
        named = {printable(str(key)): item for key, item in value.items()}
        return {key: _read(item_kind, item, where, f"{at}.{key}") for key, item in named.items()}
    return _scalar(kind, value, where, at)


def _plain(value: Any, where: str, at: str) -> Plain:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    number: Plain = _scalar(float, value, where, at)
    return value if isinstance(value, int) else number


def _scalar(kind: type, value: Any, where: str, at: str) -> Any:
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
    raise _wrong(where, at, value, expected)


def printable(text: str) -> str:
    """``text`` on one line, with U+FFFD for what cannot be shown (also what XML and UTF-8 cannot carry)."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)
