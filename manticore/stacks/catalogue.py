"""Makes primitives by name, and answers what one costs without giving it memory.

The names are those of :mod:`manticore.registry`; a name added there with ``register("layer", …)`` works in stacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from manticore.errors import ManticoreError
from manticore.making import make
from manticore.stacks.mixer import Mixer


def build_mixer(name: str, width: int, positions: int, options: Mapping[str, Any] | None = None) -> Mixer:
    """The primitive registered as ``name``.

    Args:
        name: such as ``"mh-attention"``; ``manticore ls layers`` lists them.
        width: D.
        positions: the longest sequence, for primitives that hold a table of positions.
        options: its keyword arguments.

    Raises:
        ManticoreError: unknown name or option, a value of the wrong type, heads that do not divide the width.
    """
    try:
        mixer: Mixer = make("layer", name, width, positions, options=options)
        return mixer
    except ManticoreError as error:
        if f"layer {name!r}" in str(error) or str(error).startswith("unknown"):
            raise
        raise ManticoreError(f"layer {name!r}: {error}") from error


def measured(name: str, width: int, positions: int, options: Mapping[str, Any] | None = None) -> Mixer:
    """The same primitive without memory for its weights, to be asked for sizes and costs; do not change it."""
    return _measured(name, width, positions, json.dumps(options or {}, sort_keys=True))


@lru_cache(maxsize=1024)
def _measured(name: str, width: int, positions: int, options: str) -> Mixer:
    with torch.device("meta"):
        return build_mixer(name, width, positions, json.loads(options))
