"""Evolution of designs, as STAR evolves genomes: NSGA-II with tournaments, crossover of integers, mutation and repair.

Generations are barriers. Design i of generation g is drawn from a stream of its own, (seed, g, i), out of the scores of
the generations before: whoever scores what first, and in whatever order, all is the same. optuna's ``NSGAIISampler``
keeps generations and parents, in memory; its own crossover does not act on categorical integers, so children come
through its door for other strategies.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, create_trial

from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Amount, Count, Pair, Share
from manticore.search.designs.drawn import refuse_too_many, unasked
from manticore.search.designs.method import Asking, Batch
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design
from manticore.search.designs.variation import crossover, mutate, ranked, winner
from manticore.search.storage import no_notices
from manticore.seeding import derive_seed

_FEWEST = 4
"""Designs of a generation, unless fewer are asked for."""
GENERATIONS = 18
ELITES = 2
"""As STAR has them."""
_OFFSPRING = 20
"""Children that are made before a known one is replaced by a design drawn at random."""


@checked("evolution")
def evolution(
    scores: Scores,
    seed: int,
    trials: int,
    *,
    population: Pair | None = None,
    generations: Count = GENERATIONS,
    elites: Amount = ELITES,
    tournament: Count = 3,
    points: Count = 2,
    mutation: Share = 0.1,
) -> Asking:
    """Evolution as STAR has it, by one goal or several.

    Its batches are whole populations: elites, which have scores, and children. A child that is known already is made
    again, and after some tries drawn at random, so that trials go to distinct designs; it ends early where the space
    has no others. ``scores.notes`` tells of every design its ``generation``, its ``parents``, whether it was
    ``repaired`` and became an ``elite``, and how many children were ``made`` for it, ``invalid`` ones and
    ``duplicates``.

    Args:
        scores: with the space and the goals; limits count before goals.
        seed: of all draws.
        trials: the most distinct designs.
        population: designs of a generation; None is STAR's 16, or a third of the trials where those are fewer than 48.
        generations: after the first one, which is drawn at random.
        elites: best designs that go on as they are, unscored.
        tournament: designs that are drawn for a parent; the best of them is it.
        points: where parents take turns in a child.
        mutation: probability that an integer becomes another one.

    Raises:
        ManticoreError: more trials than designs, or as many elites as designs.
    """
    space = scores.space
    refuse_too_many(trials, space)
    population = population_of(trials, population)
    if elites >= population:
        raise ManticoreError(
            f"evolution: {elites} elites in a population of {population}. Fix: elites={min(2, population - 1)}"
        )
    known: set[Design] = set()
    batch: Batch = []
    for index in range(min(population, trials)):
        design = unasked(space, known, _stream(seed, 0, index))
        if design is None:
            break
        known.add(design)
        batch.append(design)
        scores.notes[design] = _note(0)
    yield batch
    if len(batch) < 2:
        return
    breeding = _Breeding(scores, known, tournament, points, mutation)
    populations = _Populations(len(batch), breeding)
    for generation in range(1, generations + 1):
        populations.add(generation - 1, batch)
        before = len(known)
        batch = populations.best(generation, elites)
        for index in range(len(batch), populations.size):
            if len(known) < trials:
                breeding.generation = generation
                batch.append(populations.child(_stream(seed, generation, index)))
        if len(known) == before:
            return
        for design in batch[:elites]:
            scores.notes[design]["elite"] = True
        yield batch


def population_of(trials: int, population: int | None) -> int:
    """Designs of a generation, by default as said of :func:`evolution`."""
    return max(_FEWEST, min(16, trials // 3)) if population is None else population


def most_trials(
    trials: int, *, population: int | None = None, generations: int = GENERATIONS, elites: int = ELITES, **_: Any
) -> int:
    """The most designs that :func:`evolution` asks for with such options: its generations may end it before."""
    size = population_of(trials, population)
    return min(trials, size + generations * (size - elites))


def offspring(notes: Iterable[dict[str, Any]]) -> list[dict[str, int]]:
    """Per generation, how many children were ``made``, how many of them ``invalid`` and ``duplicates``."""
    counted: dict[int, dict[str, int]] = {}
    for note in notes:
        row = counted.setdefault(note["generation"], dict.fromkeys(_COUNTS, 0))
        for name in _COUNTS:
            row[name] += note[name]
    return [counted[generation] for generation in sorted(counted)]


_COUNTS = ("made", "invalid", "duplicates")


def _note(generation: int, parents: Sequence[str] | None = None) -> dict[str, Any]:
    note = {"generation": generation, "parents": parents, "repaired": False, "elite": False}
    return note | dict.fromkeys(_COUNTS, 0)


def _stream(seed: int, generation: int, index: int) -> random.Random:
    return random.Random(derive_seed(seed, f"evolution/{generation}", index))


class _Breeding:
    """Makes a child of the parents of a generation: what ``NSGAIISampler`` asks for."""

    def __init__(self, scores: Scores, known: set[Design], tournament: int, points: int, mutation: float) -> None:
        self.generation, self.draws = 0, random.Random(0)
        self.parents: list[Design] = []
        """Of this generation, best first."""
        self.scores, self._known = scores, known
        self._tournament, self._points, self._mutation = tournament, points, mutation

    def __call__(
        self, study: optuna.Study, search_space: dict[str, BaseDistribution], parents: list[FrozenTrial]
    ) -> dict[str, Any]:
        # the parents that optuna names are those that were ranked when the generation began
        child = self._child(self.parents)
        return {name: child[int(name)] for name in search_space}

    def _child(self, parents: Sequence[Design]) -> Design:
        space, draws, note = self.scores.space, self.draws, _note(self.generation)
        design = parents[0]
        for _ in range(_OFFSPRING if len(parents) > 1 else 0):
            mother = winner(parents, self._tournament, draws)
            father = winner([each for each in parents if each != mother], self._tournament, draws)
            raw = mutate(crossover(mother, father, self._points, draws), space.values, self._mutation, draws)
            note["made"] += 1
            note["repaired"] = space.problem(raw) is not None
            note["invalid"] += note["repaired"]
            design = space.repaired(raw, draws)
            if design not in self._known:
                note["parents"] = [space.spelled(mother), space.spelled(father)]
                break
            note["duplicates"] += 1
        else:
            note["repaired"] = False
            drawn = unasked(space, self._known, draws)
            design = design if drawn is None else drawn
        self._known.add(design)
        self.scores.notes.setdefault(design, note)
        return design


class _Populations:
    """Generations and their parents, in an optuna study in memory."""

    def __init__(self, size: int, breeding: _Breeding) -> None:
        self.size, self._breeding = size, breeding
        scores = breeding.scores
        self._ranges: dict[str, BaseDistribution] = {
            str(index): CategoricalDistribution(list(each)) for index, each in enumerate(scores.space.values)
        }
        self._children: list[optuna.Trial] = []
        """Of the generation that is not scored yet."""
        with no_notices():
            self._sampler = NSGAIISampler(
                population_size=size,
                seed=0,
                child_generation_strategy=breeding,
                elite_population_selection_strategy=self._survivors,
            )
            self._study = optuna.create_study(directions=["minimize"] * len(scores.goals), sampler=self._sampler)

    def add(self, generation: int, batch: Batch) -> None:
        """A generation with its scores: the children that were asked for last, behind those that came otherwise."""
        copied = len(batch) - len(self._children)
        for design in batch[:copied]:
            self._study.add_trial(
                create_trial(
                    params={str(index): value for index, value in enumerate(design)},
                    distributions=self._ranges,
                    values=list(self._breeding.scores.values(design)),
                    system_attrs={self._sampler._get_generation_key(): generation},
                )
            )
        for trial, design in zip(self._children, batch[copied:]):
            self._study.tell(trial, list(self._breeding.scores.values(design)))
        self._children = []

    def best(self, generation: int, count: int) -> Batch:
        """The best parents of a generation."""
        parents = self._sampler.get_parent_population(self._study, generation)
        self._breeding.parents = ranked(map(_design, parents), self._breeding.scores)
        return self._breeding.parents[:count]

    def child(self, draws: random.Random) -> Design:
        """The next child of the best that there are."""
        self._breeding.draws = draws
        self._children.append(self._study.ask(self._ranges))
        return tuple(self._children[-1].params[name] for name in self._ranges)

    def _survivors(self, study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Of the last population and its parents those that become parents, each design once."""
        by_design = {_design(trial): trial for trial in reversed(trials)}
        return [by_design[design] for design in ranked(by_design, self._breeding.scores)[: self.size]]


def _design(trial: FrozenTrial) -> Design:
    return tuple(trial.params[str(index)] for index in range(len(trial.params)))
