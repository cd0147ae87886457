"""What each path of a supernet costs, as sums over its blocks, hand-overs, components and ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from manticore.errors import ManticoreError
from manticore.option_types import Workload, share_of
from manticore.search.space import Path

SLACK = 1 + 1e-9
"""A limit that is a path's own cost, as it was printed, is kept in spite of rounding."""

Row = tuple[float, ...]


@dataclass(frozen=True)
class Cost:
    """One kind of cost of every path through N blocks of K components."""

    blocks: tuple[Row, ...]
    """``[N][K]``: of a component's segment."""
    handovers: tuple[Row, ...]
    """``[K][K]``: of the projector from one component to another."""
    presence: Row
    """``[K]``: of a component that is on the path at all, however many blocks it has: its position tables and norms,
    its own forward pass around its layers."""
    ends: tuple[Row, ...]
    """``[K][K]``: of embeddings and head where a path begins in one component and ends in another."""

    def of(self, path: Path) -> float:
        """The cost of a path."""
        return math.fsum(
            [
                *(row[k] for row, k in zip(self.blocks, path)),
                *(self.handovers[a][b] for a, b in itertools.pairwise(path)),
                *(self.presence[k] for k in set(path)),
                self.ends[path[0]][path[-1]],
            ]
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Cost:
        """From JSON values."""
        rows = {name: tuple(map(tuple, values[name])) for name in ("blocks", "handovers", "ends")}
        return cls(**rows, presence=tuple(values["presence"]))


@dataclass(frozen=True)
class CostTable:
    """The costs of all paths at a workload."""

    costs: Mapping[str, Cost]
    """By the names that limits have (``manticore.option_types.COSTS``)."""
    workload: Workload

    def of(self, path: Path) -> dict[str, float]:
        """Name → the cost of a path."""
        return {name: cost.of(path) for name, cost in self.costs.items()}

    def in_numbers(self, limits: Mapping[str, float | str]) -> dict[str, float]:
        """Limits of which some may be percentages of what the first component has alone, such as ``"60%"``.

        Raises:
            ManticoreError: it has nothing of that cost.
        """
        found: dict[str, float] = {}
        for name, limit in limits.items():
            share = share_of(limit)
            cost = self.costs[name]
            whole = 1.0 if share is None else cost.of((0,) * len(cost.blocks))
            if whole <= 0:
                raise ManticoreError(
                    f"search: max: {name} is {limit} of what component 0 has alone, which is none at {self.workload}. "
                    "Fix: a number"
                )
            found[name] = float(limit) if share is None else share * whole
        return found

    def excess(self, path: Path, limits: Mapping[str, float]) -> float:
        """The largest ratio of a path's costs to their limits."""
        return max((self.costs[name].of(path) / limit for name, limit in limits.items()), default=0.0)

    def keeps(self, path: Path, limits: Mapping[str, float]) -> bool:
        """Whether a path stays within all limits."""
        return self.excess(path, limits) <= SLACK

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"workload": str(self.workload), "costs": {name: asdict(cost) for name, cost in self.costs.items()}}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> CostTable:
        """From :meth:`to_dict`."""
        costs = {name: Cost.read(cost) for name, cost in values["costs"].items()}
        return cls(costs, Workload.read(values["workload"]))
