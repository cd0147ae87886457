"""Genomes of LIVs as a space of designs: norm, residual, then five integers per LIV (:mod:`manticore.stacks.genome`).

Designs are canonical genomes: what means the same is one design.

Shapes: D width.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any

from manticore.errors import ManticoreError, about
from manticore.making import checked
from manticore.option_types import Count, Depth, Size, Wanted
from manticore.registry import did_you_mean
from manticore.search.designs.drawn import ENUMERABLE
from manticore.search.designs.space import Design
from manticore.stacks.catalogue import measured
from manticore.stacks.configuration import OfNames, StackConfig
from manticore.stacks.genome import repair, to_config
from manticore.stacks.genome_integers import FIELDS, NORMS, RESIDUALS, STRATEGIES, Genome, Liv
from manticore.stacks.genome_links import Links, canonical, distinct_strategies, misfits, numbered
from manticore.stacks.liv.codes import CODES, POOL, OperatorCode, is_operator

_HEADER, _FIVE = 2, 5
_ABSENT = Liv(0)
"""In the place of a LIV that is not there, behind all others."""
_Classes = Annotated[Sequence[str | int], Wanted("a list of classes", "classes=['sa-1', 'gmemless']")]
_Names = Annotated[Sequence[str], Wanted("a list of names", "for instance ['rms', 'layer']")]


class GenomeSpace:
    """All genomes of so many LIVs.

    Args:
        livs: LIVs of a genome, the most where there may be fewer.
        least: LIVs of the shortest genome; None: all have the same number.
        width: D.
        classes: those that may appear: names of the pool, class ids, or the five digits of an operator; None: all 17.
        options: options of layers by their names, which are the same in all designs.
        norms: norms that may be chosen.
        residuals: places of the norms that may be chosen.

    Raises:
        ManticoreError: an unknown class, norm, residual or option, one that is given twice, a width that a class cannot
            have.
    """

    @checked("genomes")
    def __init__(
        self,
        *,
        livs: Depth = 8,
        least: Count | None = None,
        width: Size = 64,
        classes: _Classes | None = None,
        options: OfNames | None = None,
        norms: _Names = ("rms",),
        residuals: _Names = ("pre",),
    ) -> None:
        if least is not None and not 1 <= least <= livs:
            raise ManticoreError(f"genomes: least is {least} (expected 1 to {livs}). Fix: least={livs}")
        self.livs, self.least, self.width = livs, livs if least is None else least, width
        given = list(range(1, len(POOL) + 1) if classes is None else classes)
        self.operators = _distinct("classes", given, [_operator(each) for each in given])
        self.norms = _distinct("norms", norms, [_known("norms", each, NORMS) for each in norms])
        self.residuals = _distinct("residuals", residuals, [_known("residuals", each, RESIDUALS) for each in residuals])
        _refuse_operators_of_classes(self.operators)
        self.options = {name: dict(each) for name, each in (options or {}).items()}
        names = [Liv(operator).name for operator in self.operators]
        for name, each in self.options.items():
            _known("options", name, names)
            if name == "liv" and "code" in each:
                raise ManticoreError("genomes: options: liv: the code is the genome's to choose. Fix: leave it out")
        with about("genomes"):
            for operator in self.operators:
                liv = Liv(operator)
                measured(liv.name, width, 1, {**self.options.get(liv.name, {}), **liv.options})

    @property
    def key(self) -> dict[str, Any]:
        """The arguments that make this space again, and its kind."""
        return {
            "kind": "genomes",
            "livs": self.livs,
            "least": self.least,
            "width": self.width,
            "classes": list(self.operators),
            "options": self.options,
            "norms": list(self.norms),
            "residuals": list(self.residuals),
        }

    @cached_property
    def values(self) -> Sequence[Sequence[int]]:
        """Of norm and residual, then of every LIV's integers; class 0 is no LIV."""
        groups = range(1, self.livs + 1)
        absent = [0] if self.least < self.livs else []
        five = ([*absent, *self.operators], groups, STRATEGIES[0], groups, STRATEGIES[1])
        return [range(len(self.norms)), range(len(self.residuals)), *five * self.livs]

    @cached_property
    def labels(self) -> Sequence[tuple[str, Sequence[str | int]]]:
        """``norm``, ``residual``, then of every LIV its class by name, and groups and strategies of what it shares."""
        classes, *others = self.values[_HEADER : _HEADER + _FIVE]
        named = ["none" if operator == 0 else Liv(operator).name for operator in classes]
        if len(set(named)) < len(named):
            # operators beside the pool are all called liv
            named = ["none" if operator == 0 else str(operator) for operator in classes]
        five = [*zip(FIELDS, [named, *others])]
        livs = [(f"LIV {n:02} {name}", each) for n in range(1, self.livs + 1) for name, each in five]
        return [("norm", self.norms), ("residual", self.residuals), *livs]

    @cached_property
    def size(self) -> int:
        """How many stacks there are, which mean something else each; of many, at most so many."""
        return sum(1 for _ in self.designs()) if self._most <= ENUMERABLE else self._most

    @cached_property
    def _most(self) -> int:
        """As if all of a family could share whatever else they share."""
        families: dict[tuple[str, int], int] = {}
        for liv in map(Liv, self.operators):
            shared = len(distinct_strategies(liv.operator))
            families[liv.family, shared] = families.get((liv.family, shared), 0) + 1
        # exponential generating functions in the number of LIVs: classes, weights and features of one family are
        # chosen independently of those of the others
        counts = [1, *[0] * self.livs]
        for (_, shared), classes in families.items():
            of_classes = [1, *[0] * self.livs]
            for _ in range(classes):
                of_classes = _product(of_classes, _divisions(self.livs, 1))
            counts = _product(counts, [a * b for a, b in zip(of_classes, _divisions(self.livs, shared))])
        return sum(counts[self.least :]) * len(self.norms) * len(self.residuals)

    def designs(self) -> Iterator[Design]:
        """Every design once."""
        for norm, residual in itertools.product(self.norms, self.residuals):
            for depth in range(self.least, self.livs + 1):
                for operators in itertools.product(self.operators, repeat=depth):
                    for links in _all_links([Liv(operator) for operator in operators]):
                        genome = numbered(operators, links, norm, residual)
                        if next(misfits(genome), None) is None:
                            yield self.design(genome)

    def design(self, genome: Genome) -> Design:
        """Of a canonical genome of this space."""
        header = (self.norms.index(genome.norm), self.residuals.index(genome.residual))
        fives = [*genome.livs, *[_ABSENT] * (self.livs - len(genome.livs))]
        return (*header, *(integer for five in fives for integer in five))

    def genome(self, design: Design) -> Genome:
        """Of a design that has legal values."""
        livs = tuple(liv for liv in _fives(design) if liv.operator)
        return Genome(livs, self.norms[design[0]], self.residuals[design[1]])

    def problem(self, design: Design) -> str | None:
        """Why a design is not legal: an illegal value, too few LIVs, or sharing that cannot be."""
        if len(design) != len(self.values):
            return f"{len(design)} integers (expected {len(self.values)})"
        for index, (value, legal) in enumerate(zip(design, self.values)):
            if value not in legal:
                return f"integer {index + 1} is {value} (expected {_range(legal)})"
        depth = sum(liv.operator > 0 for liv in _fives(design))
        if depth < self.least:
            return f"{depth} LIVs (expected {self.least} or more)"
        return next(misfits(self.genome(design), alone=True), None)

    def repaired(self, design: Design, draws: random.Random) -> Design:
        """The canonical form; illegal values and missing LIVs are drawn, sharing is mended."""
        filled = [*design[: len(self.values)], *[-1] * (len(self.values) - len(design))]
        legal = [value if value in few else draws.choice(few) for value, few in zip(filled, self.values)]
        livs = [liv for liv in _fives(tuple(legal)) if liv.operator]
        while len(livs) < self.least:
            livs.append(Liv(draws.choice(self.operators)))
        genome = Genome(tuple(livs), self.norms[legal[0]], self.residuals[legal[1]])
        return self.design(repair(genome, draws))

    def spelled(self, design: Design) -> str:
        """As genomes are written: ``21211-31112-21221-32112``."""
        return str(self.genome(design))

    def read(self, text: str) -> Design:
        """From a genome as it is written; what means the same is the same design.

        Raises:
            ManticoreError: a wrong length, an illegal value with its position and what is legal there, sharing between
                classes, or what this space has not.
        """
        genome = Genome.read(text)
        if not self.least <= len(genome.livs) <= self.livs:
            wanted = self.livs if self.least == self.livs else f"{self.least} to {self.livs}"
            raise ManticoreError(f"genome: {len(genome.livs)} LIVs (expected {wanted}). Fix: five integers for each")
        if (wrong := next(misfits(genome), None)) is not None:
            raise ManticoreError(f"genome: {wrong}. Fix: another group, or strategy 1")
        for index, liv in enumerate(genome.livs):
            if liv.operator not in self.operators:
                raise ManticoreError(
                    f"genome: LIV {index + 1}, integer 1 (class) is {liv.operator} (expected {_range(self.operators)} "
                    "in this space). Fix: one of these"
                )
        _known("norms", genome.norm, self.norms)
        _known("residuals", genome.residual, self.residuals)
        return self.design(canonical(genome))

    def config(self, design: Design, *, vocab_size: int, positions: int) -> StackConfig:
        """The stack, at the width of the search."""
        genome = self.genome(design)
        names = {liv.name for liv in genome.livs}
        return to_config(
            genome,
            hidden_size=self.width,
            vocab_size=vocab_size,
            max_position_embeddings=positions,
            layer_options={name: options for name, options in self.options.items() if name in names},
        )


def _fives(design: Design) -> list[Liv]:
    integers = design[_HEADER:]
    return [Liv(*integers[start : start + _FIVE]) for start in range(0, len(integers), _FIVE)]


def _range(legal: Sequence[int]) -> str:
    ordered = list(legal)
    whole = ordered == list(range(ordered[0], ordered[-1] + 1)) and len(ordered) > 2
    return f"{ordered[0]} to {ordered[-1]}" if whole else f"one of {', '.join(map(str, ordered))}"


def _operator(given: str | int) -> int:
    """A class by its name, its id, or the digits of an operator."""
    if given in POOL:
        return POOL.index(str(given)) + 1
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= len(POOL):
        return given
    if is_operator(given):
        return int(given)
    if re.fullmatch("[0-9]{5}", str(given)):
        with about("genomes"):
            OperatorCode.read(str(given))
    near = did_you_mean(given, [*POOL]) if isinstance(given, str) else f" (expected 1 to {len(POOL)})"
    raise ManticoreError(f"genomes: no class is called {given!r}{near}")


def _refuse_operators_of_classes(operators: Sequence[int]) -> None:
    """A class and its operator are one layer, which would be trained under two names."""
    for operator in operators:
        named = next((name for name, code in CODES.items() if code == str(operator)), None)
        if named is not None and POOL.index(named) + 1 in operators:
            raise ManticoreError(f"genomes: classes: {operator} is the operator of {named}. Fix: one of the two")


def _known(what: str, given: Any, legal: Sequence[str]) -> str:
    if given not in legal:
        raise ManticoreError(f"genomes: {what}: unknown {given!r}{did_you_mean(str(given), list(legal))}")
    return str(given)


def _distinct(what: str, given: Sequence[Any], found: Sequence[Any]) -> tuple[Any, ...]:
    if not found:
        raise ManticoreError(f"genomes: no {what}. Fix: one or more")
    twice = next((given[index] for index, each in enumerate(found) if each in found[:index]), None)
    if twice is not None:
        raise ManticoreError(f"genomes: {what}: {twice!r} is given twice. Fix: once")
    return tuple(found)


def _all_links(livs: Sequence[Liv]) -> Iterator[Links]:
    """All that LIVs of these classes can reuse."""
    if not livs:
        yield Links((), (), ())
        return
    *lower, last = livs
    strategies = distinct_strategies(last.operator)
    for links in _all_links(lower):
        own = [index for index, owner in enumerate(links.weights) if owner is None]
        weights = [None, *(index for index in own if lower[index].operator == last.operator)]
        own = [index for index, owner in enumerate(links.features) if owner is None]
        mates = [index for index in own if last.fits(lower[index])]
        features: list[tuple[int | None, int]] = [(None, 1), *itertools.product(mates, strategies)]
        for of_weights, (of_features, strategy) in itertools.product(weights, features):
            yield Links((*links.weights, of_weights), (*links.features, of_features), (*links.strategies, strategy))


def _divisions(most: int, ways: int) -> list[int]:
    """For 0 to so many LIVs, into how many divisions in groups they fall, if each but a group's lowest has ``ways``."""
    counts = [1]
    for n in range(1, most + 1):
        counts.append(sum(math.comb(n - 1, k) * ways**k * counts[n - 1 - k] for k in range(n)))
    return counts


def _product(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """For 0 to so many LIVs, in how many ways some of them are chosen among by one count, the rest by the other."""
    return [sum(math.comb(n, k) * one[k] * other[n - k] for k in range(n + 1)) for n in range(len(one))]
