"""Which LIVs of a genome reuse what of which: groups of integers on one side, links to lower LIVs on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from manticore.stacks.genome_integers import STRATEGIES, Genome, Liv


@dataclass(frozen=True)
class Links:
    """What the LIVs of a stack reuse: for each the position of the LIV that has it, None for what it has itself."""

    weights: tuple[int | None, ...]
    features: tuple[int | None, ...]
    strategies: tuple[int, ...]
    """Of the features, 1 where none are reused."""


def links_of(genome: Genome) -> Links:
    """What the LIVs reuse, by their groups and strategies alone."""
    weights = _owners([(liv.featurizer_group, liv.featurizer_strategy) for liv in genome.livs])
    features = _owners([(liv.feature_group, liv.feature_strategy) for liv in genome.livs])
    strategies = [1 if owner is None else liv.feature_strategy for liv, owner in zip(genome.livs, features)]
    return Links(weights, features, tuple(strategies))


def numbered(operators: Sequence[int], links: Links, norm: str, residual: str) -> Genome:
    """The canonical genome of operators and what they reuse.

    Groups are numbered by their first appearance, from 1 within each class, every LIV that shares nothing in a group of
    its own; a group that shares takes the next number that no other one has.
    """
    weights = _numbers(operators, links.weights)
    features = _numbers(operators, links.features)
    livs = []
    for index, operator in enumerate(operators):
        followers = [k for k, owner in enumerate(links.features) if owner == index]
        strategy = _least(operator, links.strategies[followers[0] if followers else index])
        shares = links.weights[index] is not None or index in links.weights
        livs.append(Liv(operator, weights[index], 2 if shares else 1, features[index], strategy))
    return Genome(tuple(livs), norm, residual)


def canonical(genome: Genome) -> Genome:
    """The genome with canonical numbers and nothing alone in a group that shares; it means the same."""
    return numbered([liv.operator for liv in genome.livs], links_of(genome), genome.norm, genome.residual)


def distinct_strategies(operator: int) -> tuple[int, ...]:
    """Those that share features, without any that shares the same as a lower one."""
    return tuple(each for each in STRATEGIES[1] if each > 1 and _least(operator, each) == each)


def misfits(genome: Genome, *, alone: bool = False) -> Iterator[str]:
    """What cannot be shared as a genome says.

    Args:
        genome: to look at.
        alone: whether a LIV that is alone in a group that shares is one too.
    """
    livs, links = genome.livs, links_of(genome)
    for index, (liv, weights, features) in enumerate(zip(livs, links.weights, links.features)):
        at = _told(livs, index)
        if weights is not None:
            of = f"{at} shares weights in featurizer group {liv.featurizer_group} with {_told(livs, weights)}"
            if livs[weights].operator != liv.operator:
                yield f"{of}, which is of another class"
            elif not has_weights(livs, links, index, weights):
                yield f"{of}, which has none for the features that it reuses itself"
        if features is not None and not (liv.features(liv.feature_strategy) and liv.fits(livs[features])):
            of = f"{at} shares features in feature group {liv.feature_group} with {_told(livs, features)}"
            yield f"{of}, which is of {'a class without such' if liv.fits(livs[features]) else 'another family'}"
        if alone and liv.featurizer_strategy > 1 and weights is None and index not in links.weights:
            yield f"{at} is alone in featurizer group {liv.featurizer_group}, which shares"
        if alone and liv.feature_strategy > 1 and features is None and index not in links.features:
            yield f"{at} is alone in feature group {liv.feature_group}, which shares"


def has_weights(livs: Sequence[Liv], links: Links, index: int, owner: int) -> bool:
    """Whether an owner has all the weights that a LIV of its class needs: what it reuses it has none for."""
    needless = livs[index].features(links.strategies[index])
    return set(livs[owner].features(links.strategies[owner])) <= set(needless)


def _told(livs: Sequence[Liv], index: int) -> str:
    return f"LIV {index + 1} ({livs[index].title})"


def first_of(owners: Sequence[int | None], owner: int) -> int:
    """The LIV that has what ``owner`` has, which may reuse it itself."""
    higher = owners[owner]
    return owner if higher is None else higher


def _owners(groups: Sequence[tuple[int, int]]) -> tuple[int | None, ...]:
    """For each LIV, of (group, strategy), the lowest one that shares in its group; None for that one itself."""
    lowest: dict[int, int] = {}
    owners: list[int | None] = []
    for index, (group, strategy) in enumerate(groups):
        owner = lowest.setdefault(group, index) if strategy > 1 else index
        owners.append(None if owner == index else owner)
    return tuple(owners)


def _least(operator: int, strategy: int) -> int:
    """The lowest strategy that shares the same features."""
    features = Liv(operator).features
    return next(each for each in STRATEGIES[1] if features(each) == features(strategy))


def _numbers(operators: Sequence[int], owners: Sequence[int | None]) -> list[int]:
    last: dict[int, int] = {}
    taken: set[int] = set()
    numbers: list[int] = []
    for index, (operator, owner) in enumerate(zip(operators, owners)):
        if owner is not None:
            numbers.append(numbers[owner])
            continue
        number = last.get(operator, 0) + 1
        if index in owners:
            while number in taken:
                number += 1
            taken.add(number)
        last[operator] = number
        numbers.append(number)
    return numbers
