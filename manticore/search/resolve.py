"""Other limits for a search that is over: the best of what it has trained, without training anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import TYPE_CHECKING

from manticore.errors import ManticoreError
from manticore.file_names import SEARCHED
from manticore.keywords import merged
from manticore.paths import expanded
from manticore.reading import read_object
from manticore.search.constraints import constrained
from manticore.search.costs import CostTable
from manticore.search.curves import MARKS, Curves, Point
from manticore.search.space import MOST_PATHS, Path, Space
from manticore.settings import Search

if TYPE_CHECKING:
    from manticore.search.result import SearchResult

_SHOWN = 8
_NOTHING = "search: --resolve: {} holds no paths that were trained. Fix: give a folder that `manticore search` wrote"


@dataclass(frozen=True)
class Resolved:
    """What a search would have chosen among what it trained, had it had these limits."""

    path: list[int]
    """The best of the trained paths that keep them."""
    costs: dict[str, float]
    """Of that path."""
    score: float
    """Its task metric where the paths were compared."""
    trained: list[list[int]]
    """All trained paths that keep the limits."""
    untrained: list[list[int]] | None
    """Those that keep them and were never trained: any of them may be better; None where they are too many to list."""

    def __str__(self) -> str:
        """In a sentence or two."""
        costs = ", ".join(f"{name} {value:.4g}" for name, value in self.costs.items())
        said = f"path {self.path} is the best of {len(self.trained)} trained ones within the limits ({costs})"
        if self.untrained is None:
            return f"{said}; of those that were never trained there are too many to list"
        if not self.untrained:
            return f"{said}; all that keep them were trained"
        shown = ", ".join(map(str, self.untrained[:_SHOWN])) + (", …" if len(self.untrained) > _SHOWN else "")
        return f"{said}; never trained, and within them too: {shown}"


def resolve(search: SearchResult | str | Folder, limits: Mapping[str, float | str]) -> Resolved:
    """Choose again among the recorded candidates of a search, under other limits; nothing is trained.

    Args:
        search: a result, or the folder of a finished search.
        limits: as ``max`` of a search has them.

    Raises:
        ManticoreError: limits of costs that the search has not measured, no path that keeps them, none among those
            that were trained, or a folder without candidates.
    """
    wanted = merged(Search, None, {"max": limits}, stage="search").max
    if isinstance(search, str | Folder):
        record = read_object(expanded(search) / SEARCHED, "search again") or {}
    else:
        record = search.to_dict()
    if not record.get("candidates") or not record.get("costs"):
        raise ManticoreError(_NOTHING.format(search if isinstance(search, str | Folder) else "the result"))
    table = CostTable.read(record["costs"])
    missing = [name for name in wanted if name not in table.costs]
    if missing:
        raise ManticoreError(
            f"search: max: {missing[0]} was not measured by this search. Fix: one of {', '.join(table.costs)}, "
            f"or a new search with max {missing[0]}"
        )
    points: dict[Path, dict[int, Point]] = {}
    for each in record["candidates"]:
        for p in each["points"]:
            found = Point(p["mark"], p["steps"], p["flops"], 0, p["loss"], p["metric"])
            points.setdefault(tuple(each["path"]), {})[found.mark] = found
    blocks, components = len(record["path"]), len(next(iter(table.costs.values())).presence)
    every = Space(blocks, components, fresh=frozenset(record.get("fresh", ())))
    space = constrained(every, table, table.in_numbers(wanted), [f"component {k}" for k in range(components)])
    curves = Curves(space, record["higher_is_better"], range(1, MARKS + 1), points)
    trained = [path for path in points if space.may_choose(path)]
    if not trained:
        other = list(space.nearest(tuple(record["path"])))
        raise ManticoreError(
            f"search: max: of the paths that keep the limits none was trained, such as {other}. "
            "Fix: search again with these limits"
        )
    untrained = None
    if components**blocks <= MOST_PATHS:
        untrained = [list(path) for path in space.paths() if path not in points]
    mark = max(max(points[path]) for path in trained)
    best = curves.best(trained, mark)
    return Resolved(
        path=list(best),
        costs=table.of(best),
        score=points[best][mark].metric,
        trained=[list(path) for path in trained],
        untrained=untrained,
    )
