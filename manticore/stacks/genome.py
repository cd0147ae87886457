"""Genomes: stacks of linear input-varying operators (LIVs) as integers, five per LIV.

    21211-31112-21221-32112

    1 class               1 to 17 of the pool, or the five digits of an operator, which ``liv`` calls its code
    2 featurizer group    LIVs of one group that share it have the same weights
    3    its strategy     1 none, 2 all weights
    4 feature group       LIVs of one group that share it have the same computed features
    5    its strategy     1 none, 2 keys and values (attention) or B and V, 3 all but C

The lowest LIV of a group has what the others reuse; a LIV alone in its group shares nothing. A number of several digits
asks for dots, ``12.1.1.2.1``. As many fives, as many layers. Where norm or residual are not STAR's, a header in front
says so, ``v1.layer.post_21211-31112``.

Source: Thomas et al., "STAR: Synthesis of Tailored Architectures", 2024, which does not print the values of the last
integer: those are ours (docs/star.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from manticore.errors import ManticoreError
from manticore.registry import did_you_mean
from manticore.stacks.configuration import StackConfig
from manticore.stacks.genome_integers import STRATEGIES, Genome, Liv
from manticore.stacks.genome_links import Links, first_of, has_weights, links_of, misfits, numbered
from manticore.stacks.layer_entry import LayerEntry
from manticore.stacks.liv.codes import POOL, is_operator

Entry: TypeAlias = str | Sequence[Any]
"""A layer as ``StackConfig.layers`` has it: NAME, [NAME, OPTIONS] or [NAME, OPTIONS, SHARING]."""


def decode(genome: Genome | str) -> list[Entry]:
    """The layers of a genome, as ``StackConfig.layers`` has them.

    Raises:
        ManticoreError: text that is no genome, or LIVs of several classes in a group that shares.
    """
    genome = Genome.read(genome) if isinstance(genome, str) else genome
    if (wrong := next(misfits(genome), None)) is not None:
        raise ManticoreError(f"genome: {wrong}. Fix: another group, or strategy 1")
    links = links_of(genome)
    entries: list[Entry] = []
    for liv, weights, features, strategy in zip(genome.livs, links.weights, links.features, links.strategies):
        taken = () if features is None else tuple(liv.features(strategy))
        entries.append(LayerEntry(liv.name, liv.options, weights, features, taken).written)
    return entries


def encode(
    layers: Sequence[Entry] | StackConfig,
    *,
    norm: str = "rms",
    residual: str = "pre",
    layer_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Genome:
    """The genome of a stack of LIVs, with canonical numbers of groups.

    Args:
        layers: as ``StackConfig.layers`` has them, or a configuration, which says norm and residual itself.
        norm: before every layer and the head.
        residual: where the norms are.
        layer_options: options of all layers of a name, which no genome holds, as ``StackConfig`` was given them.

    Raises:
        ManticoreError: a layer that is no LIV, or has other options; sharing with a later layer or another class, or of
            features that no strategy names.
    """
    if isinstance(layers, StackConfig):
        kept = layers.layers or []
        return encode(kept, norm=layers.norm, residual=layers.residual, layer_options=layer_options)
    parsed = [_read_entry(index, entry, layer_options or {}) for index, entry in enumerate(layers)]
    weights: list[int | None] = []
    features: list[int | None] = []
    strategies: list[int] = []
    for index, (liv, sharing) in enumerate(parsed):
        owner = _lower(index, sharing, "weights_of")
        weights.append(None if owner is None else first_of(weights, owner))
        strategies.append(_strategy(index, liv, sharing))
        owner = _lower(index, sharing, "features_of")
        root = None if owner is None else first_of(features, owner)
        if root != owner and strategies[index] > strategies[owner or 0]:
            raise ManticoreError(
                f"genome: layers[{index}] shares more features with layers[{owner}] than that one reuses itself. "
                f"Fix: features_of={root}"
            )
        features.append(root)
    links = Links(tuple(weights), tuple(features), tuple(strategies))
    genome = numbered([liv.operator for liv, _ in parsed], links, norm, residual)
    if (wrong := next(misfits(genome), None)) is not None:
        raise ManticoreError(f"genome: {wrong}. Fix: share with a layer of its class")
    return genome


def to_config(genome: Genome | str, **settings: Any) -> StackConfig:
    """The stack of a genome, with further settings of ``StackConfig``.

    Raises:
        ManticoreError: what :func:`decode` refuses, or settings that a stack cannot have.
    """
    genome = Genome.read(genome) if isinstance(genome, str) else genome
    return StackConfig(layers=decode(genome), norm=genome.norm, residual=genome.residual, **settings)  # type: ignore[arg-type]


def repair(genome: Genome, draws: random.Random) -> Genome:
    """The canonical form of a genome; LIVs that cannot share as it says share with others, or nothing.

    A LIV that shares joins the lowest LIV of its group that it can share with. Where there is none and none above joins
    it, it joins one of all those below that it can share with, drawn at random; else its sharing is switched off.
    """
    livs = genome.livs
    weights = _joined(
        [liv.featurizer_group if liv.featurizer_strategy > 1 else None for liv in livs],
        lambda index, owner: livs[index].operator == livs[owner].operator,
        draws,
    )
    features = _joined(
        [liv.feature_group if liv.features(liv.feature_strategy) else None for liv in livs],
        lambda index, owner: livs[index].fits(livs[owner]),
        draws,
    )
    strategies = [1 if owner is None else liv.feature_strategy for liv, owner in zip(livs, features)]
    links = Links(tuple(weights), tuple(features), tuple(strategies))
    kept = [o if o is None or has_weights(livs, links, k, o) else None for k, o in enumerate(weights)]
    links = replace(links, weights=tuple(kept))
    return numbered([liv.operator for liv in livs], links, genome.norm, genome.residual)


def _joined(
    groups: Sequence[int | None], can_share: Callable[[int, int], bool], draws: random.Random
) -> list[int | None]:
    """For each LIV, of the group in which it would share, the owner that it joins."""
    owners: list[int | None] = []
    for index, group in enumerate(groups):
        owner = None
        if group is not None:
            possible = [k for k in range(index) if can_share(index, first_of(owners, k))]
            mates = [k for k in possible if groups[k] == group]
            joined = any(groups[k] == group and can_share(k, index) for k in range(index + 1, len(groups)))
            if mates or (possible and not joined):
                owner = first_of(owners, mates[0] if mates else draws.choice(possible))
        owners.append(owner)
    return owners


def _read_entry(index: int, entry: Entry, of_names: Mapping[str, Mapping[str, Any]]) -> tuple[Liv, Mapping[str, Any]]:
    """A layer without groups, and its sharing."""
    name, options, sharing = (entry, {}, {}) if isinstance(entry, str) else (*entry, {}, {})[:3]
    if name not in (*POOL, "liv"):
        raise ManticoreError(f"genome: layers[{index}] is {name!r}, which no genome holds{did_you_mean(name, [*POOL])}")
    options = {key: value for key, value in options.items() if of_names.get(name, {}).get(key, ...) != value}
    code = options.pop("code", None) if name == "liv" else None
    if options or (name == "liv" and not is_operator(code)):
        raise ManticoreError(
            f"genome: layers[{index}] ({name}) has the options {options} (expected "
            f"{'a legal code' if name == 'liv' else 'none'}). Fix: hand those of all layers of a name to layer_options"
        )
    return Liv(POOL.index(name) + 1 if code is None else int(code)), sharing


def _lower(index: int, sharing: Mapping[str, Any], what: str) -> int | None:
    owner = sharing.get(what)
    if owner is not None and not 0 <= owner < index:
        raise ManticoreError(
            f"genome: layers[{index}] shares with layers[{owner}] (expected a lower layer). Fix: {what} below {index}"
        )
    return owner


def _strategy(index: int, liv: Liv, sharing: Mapping[str, Any]) -> int:
    wanted = set(sharing.get("features", ()))
    found = next((each for each in STRATEGIES[1] if set(liv.features(each)) == wanted), None)
    if found is None:
        sets = " or ".join(", ".join(liv.features(each)) or "none" for each in STRATEGIES[1])
        raise ManticoreError(
            f"genome: layers[{index}] shares the features {', '.join(sorted(wanted))} (expected {sets}). Fix: these"
        )
    return found
