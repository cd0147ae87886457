"""Incremental search of layer lists: round by round, a few layers at a time, beside what was found before.

One-shot search is a method used as it is. End-incremental search appends layers to the best list so far,
middle-incremental search puts them into its middle (Composer, 2025). A round looks among Z^n lists; its stacks have the
depth reached so far, and their width in proportion.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from manticore import registry
from manticore.errors import ManticoreError
from manticore.option_types import Count
from manticore.search.designs.layer_lists import LayerListSpace
from manticore.search.designs.method import Asking
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design
from manticore.seeding import derive_seed
from manticore.stacks.configuration import StackConfig

_ROUNDS = ("end-incremental", "middle-incremental")


def end_incremental(
    scores: Scores, seed: int, trials: int, *, sampler: str = "gp", batch: Count | None = None
) -> Asking:
    """Keeps the best list of a round and searches the next layers above it.

    Args:
        scores: with a space of layer lists that grows (``grown_by``).
        seed: of all rounds.
        trials: of all rounds, in equal shares; what a round has no designs for goes to those after it.
        sampler: the method of each round.
        batch: designs that are asked for together; None is what the sampler does.

    Raises:
        ManticoreError: a space that does not grow, fewer trials than rounds, a sampler that is none.
    """
    return _grown("end-incremental", scores, seed, trials, lambda best: len(best), sampler, batch)


def middle_incremental(
    scores: Scores, seed: int, trials: int, *, sampler: str = "gp", batch: Count | None = None
) -> Asking:
    """Splits the best list of a round in its middle and searches the layers between the halves.

    Args:
        scores: with a space of layer lists that grows (``grown_by``).
        seed: of all rounds.
        trials: of all rounds, in equal shares; what a round has no designs for goes to those after it.
        sampler: the method of each round.
        batch: designs that are asked for together; None is what the sampler does.

    Raises:
        ManticoreError: a space that does not grow, fewer trials than rounds, a sampler that is none.
    """
    return _grown("middle-incremental", scores, seed, trials, lambda best: len(best) // 2, sampler, batch)


def _grown(
    name: str,
    scores: Scores,
    seed: int,
    trials: int,
    cut: Callable[[Design], int],
    sampler: str,
    batch: int | None,
) -> Asking:
    space = scores.space
    if not isinstance(space, LayerListSpace) or space.grown_by is None:
        raise ManticoreError(
            f"{name}: the space does not grow (expected lists of layers with grown_by). "
            "Fix: give the layers of a round, for instance grown_by=4, or method gp"
        )
    if sampler in _ROUNDS:
        raise ManticoreError(f"{name}: sampler is {sampler!r}, which has rounds itself. Fix: for instance sampler='gp'")
    search = registry.resolve("design", sampler)
    rounds = space.layers // space.grown_by
    if trials < rounds:
        raise ManticoreError(
            f"{name}: {trials} trials for {rounds} rounds (expected one for each at least). Fix: trials={8 * rounds}"
        )
    best: Design = ()
    options = {} if batch is None else {"batch": batch}
    for round_ in range(rounds):
        gap = _Gap(space, best[: cut(best)], best[cut(best) :], space.grown_by)
        inner = replace(scores, space=gap, found={}, failed={}, notes={})
        share = min(trials // (rounds - round_), gap.size)
        for asked in search(inner, derive_seed(seed, "design/round", round_), share, **options):
            yield [gap.whole(design) for design in asked]
            for design in asked:
                whole = gap.whole(design)
                if design in inner.notes:
                    scores.notes[whole] = inner.notes[design]
                if whole in scores.found:
                    inner.found[design] = scores.found[whole]
                else:
                    inner.failed[design] = scores.failed.get(whole, "was not scored")
        trials -= len(inner.found) + len(inner.failed)
        chosen = inner.best()
        if chosen is None:
            # all failed, or exceed a limit, which more layers only make worse
            return
        best = gap.whole(chosen)


class _Gap:
    """The layers between two parts of a list that are settled.

    Args:
        space: of the whole lists.
        below: the layers under the gap.
        above: those over it.
        layers: n, in the gap.
    """

    def __init__(self, space: LayerListSpace, below: Design, above: Design, layers: int) -> None:
        self._space, self._below, self._above, self._layers = space, below, above, layers

    def whole(self, design: Design) -> Design:
        """With what is settled around it."""
        return (*self._below, *design, *self._above)

    @property
    def key(self) -> dict[str, Any]:
        """That of the space, and what is settled."""
        return {**self._space.key, "below": list(self._below), "above": list(self._above), "gap": self._layers}

    @property
    def values(self) -> Sequence[Sequence[int]]:
        """The indices of all primitives, for every layer of the gap."""
        return self._space.values[: self._layers]

    @property
    def labels(self) -> Sequence[tuple[str, Sequence[str | int]]]:
        """Those of the gap's layers."""
        return self._space.labels[len(self._below) : len(self._below) + self._layers]

    @property
    def size(self) -> int:
        """Z^n."""
        return len(self._space.primitives) ** self._layers

    def designs(self) -> Iterator[Design]:
        """All that can fill the gap."""
        return itertools.product(*self.values)

    def problem(self, design: Design) -> str | None:
        """As that of the space, of the whole list."""
        return self._space.problem(self.whole(design))

    def repaired(self, design: Design, draws: random.Random) -> Design:
        """As that of the space: what is illegal is drawn again, and the length is that of the gap."""
        return self._space.repaired_to(design, self._layers, draws)

    def spelled(self, design: Design) -> str:
        """The whole list."""
        return self._space.spelled(self.whole(design))

    def read(self, text: str) -> Design:
        """What is in the gap of a whole list."""
        whole = self._space.read(text)
        return whole[len(self._below) : len(self._below) + self._layers]

    def config(self, design: Design, *, vocab_size: int, positions: int) -> StackConfig:
        """The stack of the whole list."""
        return self._space.config(self.whole(design), vocab_size=vocab_size, positions=positions)
