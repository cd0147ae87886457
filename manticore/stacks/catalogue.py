"""Makes primitives by name, and answers what one costs without giving it memory.

The names are those of :mod:`manticore.registry`; a name added there with ``register("layer", …)`` works in stacks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from manticore.errors import ManticoreError
from manticore.making import make
from manticore.stacks.mixer import Mixer


def build_mixer(
    name: str,
    width: int,
    positions: int,
    options: Mapping[str, Any] | None = None,
    taken: tuple[str, ...] = (),
    *,
    whole: bool = False,
) -> Mixer:
    """The primitive registered as ``name``.

    Args:
        name: such as ``"mh-attention"``; ``manticore ls layers`` lists them.
        width: D.
        positions: the longest sequence, for primitives that hold a table of positions.
        options: its keyword arguments.
        taken: features that it takes from a lower layer, so that it needs no weights for them.
        whole: whether it has these weights nevertheless.

    Raises:
        ManticoreError: unknown name or option, a value of the wrong type, heads that do not divide the width, features
            that it does not have.
    """
    try:
        mixer: Mixer = make("layer", name, width, positions, options=options)
        if taken:
            mixer.take(taken, whole=whole)
        return mixer
    except ManticoreError as error:
        if f"layer {name!r}" in str(error) or str(error).startswith("unknown"):
            raise
        raise ManticoreError(f"layer {name!r}: {error}") from error


def measured(
    name: str,
    width: int,
    positions: int,
    options: Mapping[str, Any] | None = None,
    taken: tuple[str, ...] = (),
    *,
    whole: bool = False,
) -> Mixer:
    """The same primitive without memory for its weights, to be asked for sizes and costs; do not change it."""
    return _measured(name, width, positions, json.dumps(options or {}, sort_keys=True), taken, whole)


@lru_cache(maxsize=1024)
def _measured(name: str, width: int, positions: int, options: str, taken: tuple[str, ...], whole: bool) -> Mixer:
    with torch.device("meta"):
        return build_mixer(name, width, positions, json.loads(options), taken, whole=whole)


def family(name: str, options: Mapping[str, Any] | None = None) -> str:
    """The class of operators within which a layer can take features of lower ones; empty where it can take none."""
    return _at_a_width(name, options).family


def shareable(name: str, options: Mapping[str, Any] | None = None, strategy: int = 2) -> tuple[str, ...]:
    """The features that a strategy of STAR's feature-group sharing takes from a lower layer.

    Args:
        name: of the layer.
        options: of it.
        strategy: 1 none, 2 keys and values (attention) or B and V, 3 all but C, the readout's.

    Returns:
        ``LayerEntry.features``; empty for layers that share nothing.
    """
    groups = _at_a_width(name, options).feature_groups
    return groups[0 if strategy == 2 else -1] if groups and strategy > 1 else ()


def fits(name: str, options: Mapping[str, Any] | None, maker: str, of_maker: Mapping[str, Any] | None = None) -> bool:
    """Whether a layer can take features of another one, at a width that has heads for both."""
    heads = math.lcm(*((given or {}).get("num_heads") or 4 for given in (options, of_maker)))
    one, other = (_at_a_width(*each, heads) for each in ((name, options), (maker, of_maker)))
    return bool(one.feature_groups) and one.mismatch(other) is None


def _at_a_width(name: str, options: Mapping[str, Any] | None, heads: int | None = None) -> Mixer:
    """The layer at a width that has such heads: what can be shared does not depend on it."""
    width = 32 * (heads or (options or {}).get("num_heads") or 4)
    return measured(name, width, width, options)
