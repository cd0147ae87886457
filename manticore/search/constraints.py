"""Which paths keep limits of cost, and the best of them where scores add.

A cost is a sum over blocks, hand-overs, the components that are on the path, and its ends. So a path's beginning
matters to the rest only by its first and last component, the set of those it has been through, and what it has cost and
scored so far: of two beginnings that agree in these, one that costs no less and scores no more can be forgotten, and
what is left at the end holds the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from manticore.errors import ManticoreError
from manticore.search.costs import SLACK, Cost, CostTable
from manticore.search.space import MOST_PATHS, Allowed, Path, Scores, Space, path_text


@dataclass(frozen=True)
class Within:
    """The allowed ones of more paths than are listed."""

    table: CostTable
    limits: Mapping[str, float]

    def __contains__(self, path: object) -> bool:
        return isinstance(path, tuple) and self.table.keeps(path, self.limits)

    @property
    def key(self) -> object:
        """What it depends on, as JSON values."""
        return {"limits": dict(self.limits), **self.table.to_dict()}

    def best(self, scores: Scores) -> Path:
        """The allowed path with the largest sum of scores."""
        found = best_by_table(scores, self.table, self.limits)
        assert found is not None
        return found


def constrained(space: Space, table: CostTable, limits: Mapping[str, float], names: Sequence[str]) -> Space:
    """A space of which only the paths within limits may be chosen.

    Args:
        space: all paths.
        table: with the costs that have limits.
        limits: name → the most that a path may cost.
        names: of the components, for the error.

    Raises:
        ManticoreError: no path keeps the limits.
    """
    if not limits:
        return space
    if space.num_components**space.num_blocks <= MOST_PATHS:
        allowed: Allowed = allowed_paths(space, table, limits)
        found = bool(allowed)
    else:
        allowed = Within(table, limits)
        found = best_by_table(_zeros(space), table, limits) is not None
    if not found:
        path = nearest(space, table, limits)
        costs = ", ".join(f"{name} {table.costs[name].of(path):.4g} (limit {limits[name]:.4g})" for name in limits)
        raise ManticoreError(
            f"search: max: no path keeps the limits at {table.workload}; the nearest is {list(path)}, "
            f"{path_text(path, names)}, with {costs}. Fix: higher limits"
        )
    return replace(space, allowed=allowed)


def allowed_paths(space: Space, table: CostTable, limits: Mapping[str, float]) -> frozenset[Path]:
    """The paths within all limits, of a space whose paths are listed.

    Raises:
        ManticoreError: they are too many to list.
    """
    return frozenset(path for path in space.paths() if table.keeps(path, limits))


def nearest(space: Space, table: CostTable, limits: Mapping[str, float]) -> Path:
    """The path whose largest ratio of a cost to its limit is the smallest."""
    if space.num_components**space.num_blocks <= MOST_PATHS:
        paths: Iterable[Path] = space.paths()
    else:
        paths = (found.path for found in _frontier(_zeros(space), table, dict.fromkeys(limits, math.inf)))
    return min(paths, key=lambda path: (table.excess(path, limits), path))


def best_by_table(scores: Scores, table: CostTable, limits: Mapping[str, float] | None = None) -> Path | None:
    """The path with the largest sum of scores among those within all limits, exactly; None where there is none.

    Args:
        scores: ``[N][K]``: of each component in each block.
        table: with the costs that have limits.
        limits: name → the most that a path may cost; None: there are none.

    Returns:
        The path; of several as good ones the first in the order of their indices that is found.
    """
    ends = _frontier(scores, table, limits or {})
    return min(ends, key=lambda end: (-end.score, end.path)).path if ends else None


@dataclass(frozen=True)
class _Begun:
    """A path so far."""

    costs: tuple[float, ...]
    score: float
    path: Path


def _frontier(scores: Scores, table: CostTable, limits: Mapping[str, float]) -> list[_Begun]:
    """All whole paths within limits that no other one is better than in score and every cost."""
    costs, bounds = [table.costs[name] for name in limits], [limit * SLACK for limit in limits.values()]
    blocks, components = len(scores), range(len(scores[0]))
    ahead = [_least_ahead(cost, blocks) for cost in costs]

    def within(found: _Begun) -> bool:
        n, k = len(found.path) - 1, found.path[-1]
        return all(spent + least[n][k] <= bound for spent, least, bound in zip(found.costs, ahead, bounds, strict=True))

    def start(k: int) -> _Begun:
        return _Begun(tuple(cost.blocks[0][k] + cost.presence[k] for cost in costs), scores[0][k], (k,))

    def step(begun: _Begun, k: int) -> _Begun:
        n, last, new = len(begun.path), begun.path[-1], k not in begun.path
        spent = tuple(
            before + cost.blocks[n][k] + cost.handovers[last][k] + (cost.presence[k] if new else 0.0)
            for before, cost in zip(begun.costs, costs)
        )
        return _Begun(spent, begun.score + scores[n][k], (*begun.path, k))

    def end(begun: _Begun) -> _Begun:
        first, last = begun.path[0], begun.path[-1]
        spent = tuple(before + cost.ends[first][last] for before, cost in zip(begun.costs, costs))
        return replace(begun, costs=spent)

    begun = [start(k) for k in components]
    for _ in range(1, blocks):
        alike: dict[tuple[int, int, frozenset[int]], list[_Begun]] = {}
        for found in begun:
            for k in components:
                if within(longer := step(found, k)):
                    alike.setdefault((longer.path[0], k, frozenset(longer.path)), []).append(longer)
        begun = [kept for same in alike.values() for kept in _undominated(same)]
    whole = [end(found) for found in begun]
    return _undominated([w for w in whole if all(spent <= bound for spent, bound in zip(w.costs, bounds))])


def _least_ahead(cost: Cost, blocks: int) -> list[list[float]]:
    """``[N][K]``: no way to go on after block n in component k costs less than this."""
    components = range(len(cost.presence))
    # times are differences of measurements, and may be negative where there is nothing
    rest = min(map(min, cost.ends)) + sum(min(0.0, value) for value in cost.presence)
    rows = [[rest for _ in components]]
    for n in range(blocks - 1, 0, -1):
        after = rows[0]
        rows.insert(
            0, [min(cost.handovers[k][m] + cost.blocks[n][m] + after[m] for m in components) for k in components]
        )
    return rows


def _undominated(found: list[_Begun]) -> list[_Begun]:
    """Those that no other one is at least as good as in everything; the first of equals."""
    kept: list[_Begun] = []
    for each in sorted(found, key=lambda one: (-one.score, one.costs, one.path)):
        # all that are kept score at least as high
        if not any(all(a <= b for a, b in zip(other.costs, each.costs)) for other in kept):
            kept.append(each)
    return kept


def _zeros(space: Space) -> list[list[float]]:
    return [[0.0] * space.num_components for _ in range(space.num_blocks)]
