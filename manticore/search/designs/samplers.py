"""Samplers of optuna as methods: a Gaussian process, TPE.

A design is a trial with one categorical parameter per position, so a Gaussian process sees the Hamming distance with a
length scale per position: exchanging a layer costs the same whichever two primitives it is. A design that was asked for
already never costs a trial: its score is told to the sampler once more, which makes it surer there, and it is asked
again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import Trial, TrialState

from manticore.option_types import Amount, Count
from manticore.search.designs.drawn import ENUMERABLE, refuse_too_many, unasked
from manticore.search.designs.method import Asking, Batch
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design
from manticore.search.storage import no_notices
from manticore.seeding import derive_seed

_ASKED_AGAIN = 8
"""Times that a sampler may name what it named before; then a neighbour of that is taken."""


def gp(
    scores: Scores,
    seed: int,
    trials: int,
    *,
    batch: Count = 1,
    first: Amount = 10,
    noiseless: bool = False,
) -> Asking:
    """A Gaussian process over the positions, Matérn 5/2, and the expected improvement (of the hypervolume).

    Args:
        scores: with the space and one or several goals.
        seed: of all draws.
        trials: distinct designs.
        batch: designs that are asked for together, for as many workers; each beyond the first expects what those before
            it may score.
        first: designs drawn at random before the process is asked.
        noiseless: whether a score is taken for exact.

    Raises:
        ManticoreError: more trials than designs.
    """
    with no_notices():
        sampler = _ListedGP(
            seed=derive_seed(seed, "design/gp"),
            n_startup_trials=first,
            deterministic_objective=noiseless,
            warn_independent_sampling=False,
        )
    return asked_of(sampler, scores, seed, trials, batch)


def tpe(
    scores: Scores, seed: int, trials: int, *, batch: Count = 1, first: Amount = 10, multivariate: bool = True
) -> Asking:
    """Tree-structured Parzen estimators: what good designs have more often than others.

    Args:
        scores: with the space and one or several goals.
        seed: of all draws.
        trials: distinct designs.
        batch: designs that are asked for together, for as many workers.
        first: designs drawn at random before the estimators are asked.
        multivariate: whether positions are looked at together.

    Raises:
        ManticoreError: more trials than designs.
    """
    with no_notices():
        sampler = TPESampler(seed=derive_seed(seed, "design/tpe"), n_startup_trials=first, multivariate=multivariate)
    return asked_of(sampler, scores, seed, trials, batch)


def asked_of(sampler: BaseSampler, scores: Scores, seed: int, trials: int, batch: int) -> Asking:
    """What any sampler of optuna asks for, in batches, until ``trials`` distinct designs are scored.

    It ends sooner where no new design is found.

    Raises:
        ManticoreError: more trials than designs.
    """
    refuse_too_many(trials, scores.space)
    told = _Told(sampler, scores, seed)
    if isinstance(sampler, _ListedGP):
        sampler.left = told.left
    while len(told.asked) < trials:
        pending: dict[Design, Trial] = {}
        for _ in range(min(batch, trials - len(told.asked))):
            new = told.new()
            if new is None:
                break
            pending[new[0]] = new[1]
        if not pending:
            return
        asked: Batch = list(pending)
        yield asked
        for design, trial in pending.items():
            told.tell(trial, design)


class _ListedGP(GPSampler):
    """Looks for the best expected improvement among all designs that are left, where they can be listed.

    optuna's own search walks from sampled points and may end on a design that was scored already.
    """

    left: Callable[[], list[Design]] = staticmethod(list)
    """Lists them; empty where there are too many."""

    def _optimize_acqf(self, acqf: Any, *rest: Any, **named: Any) -> Any:
        left = self.left()
        if not left:
            return super()._optimize_acqf(acqf, *rest, **named)
        points = np.array(left, dtype=float)
        return points[np.argmax(acqf.eval_acqf_no_grad(points))]


class _Told:
    """A study in memory, which knows the scores of what was asked for."""

    def __init__(self, sampler: BaseSampler, scores: Scores, seed: int) -> None:
        self.scores, self.asked = scores, dict[Design, None]()
        self._draws = random.Random(derive_seed(seed, "design/neighbours"))
        # optuna sorts parameters by name
        self._positions: Mapping[str, BaseDistribution] = {
            f"{position:05}": CategoricalDistribution(list(values))
            for position, values in enumerate(scores.space.values)
        }
        with no_notices():
            self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(scores.goals))

    def left(self) -> list[Design]:
        """The designs that were not asked for, as the sampler sees them: which of its values a position has.

        In any order, so that nothing is preferred for its place; none where they are too many to be listed.
        """
        space = self.scores.space
        if space.size > ENUMERABLE:
            return []
        left = [design for design in space.designs() if design not in self.asked]
        self._draws.shuffle(left)
        several = [(position, list(values)) for position, values in enumerate(space.values) if len(values) > 1]
        return [tuple(values.index(design[position]) for position, values in several) for design in left]

    def new(self) -> tuple[Design, Trial] | None:
        """A design that was not asked for, and its trial; None where none is found."""
        design: Design = ()
        for _ in range(_ASKED_AGAIN):
            trial = self._study.ask(dict(self._positions))
            named = tuple(trial.params[position] for position in self._positions)
            design = self.scores.space.repaired(named, self._draws)
            if design == named and design not in self.asked:
                self.asked[design] = None
                return design, trial
            self.tell(trial, named)
            if design not in self.asked:
                break
        if design in self.asked:
            neighbour = self._neighbour(design)
            if neighbour is None:
                return None
            design = neighbour
        self._study.enqueue_trial(dict(zip(self._positions, design)))
        self.asked[design] = None
        return design, self._study.ask(dict(self._positions))

    def tell(self, trial: Trial, design: Design) -> None:
        """The scores of a design; one that has none has failed, as far as the sampler is concerned."""
        if not all(map(math.isfinite, values := self.scores.values(design))):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        for limit, excess in enumerate(self.scores.excess(design)):
            trial.set_constraint(str(limit), excess)
        self._study.tell(trial, list(values))

    def _neighbour(self, design: Design) -> Design | None:
        """The nearest design that was not asked for, by exchanged positions; else any."""
        values: Any = self.scores.space.values
        changes = [(i, v) for i, among in enumerate(values) for v in among if v != design[i]]
        self._draws.shuffle(changes)
        for position, value in changes:
            near = (*design[:position], value, *design[position + 1 :])
            near = self.scores.space.repaired(near, self._draws)
            if near not in self.asked:
                return near
        return unasked(self.scores.space, self.asked, self._draws)
