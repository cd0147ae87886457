"""Typed reading of ``results.json``, the record that a run leaves behind and all the report knows.

Every part is optional: a run may have stopped before it. K components, N blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError
from manticore.file_names import RESULTS, SCHEMA_VERSION
from manticore.option_types import LONGEST_PROMPT, MOST_LENGTHS
from manticore.report.typed_reading import TypedReader
from manticore.stages.align import AlignRecord
from manticore.stages.combine import CombineRecord, ComponentRecord, TaskInfo
from manticore.stages.compare import CompareRecord
from manticore.stages.discretize import DiscretizeRecord
from manticore.stages.distill import DistillRecord
from manticore.stages.finetune import FinetuneRecord, SavedModel
from manticore.stages.records import PluggedRecord, Weights
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
    def fresh(self) -> tuple[int, ...]:
        """Components that are no parents, since they were made beside one."""
        return self.combine.fresh if self.combine else ()

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
    reader = TypedReader(where, "run the stage again")
    if not isinstance(raw, Mapping):
        raise reader.wrong("", raw, "an object")
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ManticoreError(
            f"{where}: schema_version: unknown version (got {version!r:.40}, expected {SCHEMA_VERSION}). "
            "Fix: use the version of manticore that wrote this run"
        )
    results: Results = reader.read(Results, raw)
    _check_shapes(results, reader)
    return results


def as_results(results: Results | Mapping[str, Any]) -> Results:
    """``results`` itself, or parsed where it is still a plain mapping."""
    return results if isinstance(results, Results) else parse_results(results)


def _check_shapes(results: Results, reader: TypedReader) -> None:
    """Refuse records whose tables do not fit together; a figure of them would show something wrong."""
    k, n = results.num_components, results.num_blocks

    def expect(ok: bool, at: str, expected: str, got: object) -> None:
        if not ok:
            raise reader.wrong(at, got, expected)

    if results.combine and results.combine.boundaries:
        bounds = results.combine.boundaries
        expect(len(bounds) == k, "combine.boundaries", f"{k} rows, one per component", f"{len(bounds)} rows")
        for row in bounds:
            expect(len(row) == n + 1, "combine.boundaries", f"rows of {n + 1} numbers", f"{len(row)} numbers")
    if results.combine and results.combine.feature_spaces:
        spaces = results.combine.feature_spaces
        fits = len(spaces) == k and all(0 <= space < k for space in spaces)
        expect(fits, "combine.feature_spaces", f"{k} indices below {k}", list(spaces))
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
    for at, value, expected, fits in _of_writing(compare, len(known)):
        expect(fits, f"compare.writing.{at}", expected, value)


def _of_writing(compare: CompareRecord, budgets: int) -> Iterator[tuple[str, object, str, bool]]:
    """Place, value, what is expected, and whether it is that, of what the models of a comparison write."""
    for each in compare.writing:
        found = each.generated
        yield "budget", each.budget, f"an index below {budgets}", each.budget is None or each.budget in range(budgets)
        shares = [("exact_match", found.exact_match), *(("recall.share", one.share) for one in found.recall)]
        for at, share in shares:
            yield f"generated.{at}", share, "a share from 0 to 1", share is None or 0 <= share <= 1
        lengths = {"recall.length": [one.length for one in found.recall]}
        lengths["speed.context"] = [one.context for one in found.speed]
        for at, tokens in lengths.items():
            fits = len(tokens) <= MOST_LENGTHS and all(1 <= each <= LONGEST_PROMPT for each in tokens)
            yield f"generated.{at}", tokens, f"up to {MOST_LENGTHS}, each from 1 to {LONGEST_PROMPT:,}", fits
        for one in found.speed:
            for name in ("first_token_ms", "tokens_per_second", "cache_bytes"):
                value = getattr(one, name)
                yield f"generated.speed.{name}", value, "0 or more", value is None or value >= 0
