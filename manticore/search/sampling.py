"""Which path a step trains: drawn from (seed, step) alone, so that a resumed training and a plan draw the same.

uniform    every block by itself, each component alike
weighted   every block by itself, each component as often as the supernet's mixture weights say
layouts    first how many blocks each component has, every division alike, then which: nearly pure paths as often as
           mixed ones
Where only some paths may be chosen, one of them, with the probability that it has among all, renormalised.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from manticore.errors import ManticoreError
from manticore.option_types import Sampling
from manticore.search.space import Path, Space
from manticore.seeding import derive_seed

_DRAWS = 100
"""Paths that are drawn before one of them keeps the rule; else the last one's nearest that does is taken."""
SAMPLINGS: tuple[str, ...] = get_args(Sampling)


@dataclass(frozen=True)
class Sampler:
    """Draws a path for every step.

    Raises:
        ManticoreError: weights that give no allowed path a chance.
    """

    space: Space
    sampling: str
    seed: int
    weights: Sequence[Sequence[float]]
    """Mixture weights ``[N][K]``, for ``weighted``."""

    def path(self, step: int) -> Path:
        """The path of a step, counted from 0."""
        draw = random.Random(derive_seed(self.seed, "sampled path", step))
        if isinstance(self.space.allowed, frozenset):
            paths, chances = self._allowed
            return draw.choices(paths, chances)[0]
        for _ in range(_DRAWS):
            if self.space.may_choose(path := self._drawn(draw)):
                return path
        # where hardly any path keeps a rule
        return self.space.nearest(path)

    def _drawn(self, draw: random.Random) -> Path:
        """Of all paths."""
        n, k = self.space.num_blocks, self.space.num_components
        if self.sampling == "weighted":
            return tuple(draw.choices(range(k), row)[0] for row in self.weights)
        if self.sampling == "uniform":
            return tuple(draw.randrange(k) for _ in range(n))
        # K - 1 bars among N stars: every division of the blocks alike
        bars = [-1, *sorted(draw.sample(range(n + k - 1), k - 1)), n + k - 1]
        path = [component for component in range(k) for _ in range(bars[component + 1] - bars[component] - 1)]
        draw.shuffle(path)
        return tuple(path)

    def chance(self, path: Path) -> float:
        """The probability of a path where all may be chosen."""
        n, k = self.space.num_blocks, self.space.num_components
        if self.sampling == "weighted":
            return math.prod(row[m] for row, m in zip(self.weights, path))
        if self.sampling == "uniform":
            return 1 / k**n
        places = math.factorial(n) // math.prod(map(math.factorial, Counter(path).values()))
        return 1 / (math.comb(n + k - 1, k - 1) * places)

    @cached_property
    def _allowed(self) -> tuple[list[Path], list[float]]:
        paths = self.space.listed or []
        chances = [self.chance(path) for path in paths]
        if not sum(chances):
            raise ManticoreError(
                "search: sampling is 'weighted', but the mixture weights leave no path that may be chosen. "
                "Fix: sampling='uniform', or other weights (hybrid.set_mixture_weights)"
            )
        return paths, chances


def sampled(sampler: Sampler, costs: Callable[[Path], int], budget: float) -> list[Path]:
    """The paths of the steps that a budget pays for.

    Raises:
        ManticoreError: not even one.
    """
    paths: list[Path] = []
    spent = 0
    for step in itertools.count():
        path = sampler.path(step)
        spent += costs(path)
        if spent > budget:
            break
        paths.append(path)
    if not paths:
        raise ManticoreError(
            f"search: shared weights have {budget:.3g} FLOPs, one step costs {spent:.3g}. "
            "Fix: more shared_units, or a larger finetune_flops"
        )
    return paths
