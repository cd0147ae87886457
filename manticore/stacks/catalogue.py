"""Makes primitives by name, and answers what one costs without giving it memory.

The names are those of :mod:`manticore.registry`; a name added there with ``register("layer", …)`` works in stacks.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from manticore import registry
from manticore.errors import ManticoreError
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
    make = registry.resolve("layer", name)
    known = {
        option: parameter
        for option, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for option, value in (options or {}).items():
        if option not in known:
            hint = registry.did_you_mean(option, list(known)) if known else " (it has none)"
            raise ManticoreError(f"layer {name!r}: unknown option {option!r}{hint}")
        _check_value(name, option, value, known[option].default)
    try:
        return make(width, positions, **(options or {}))
    except ManticoreError as error:
        raise ManticoreError(f"layer {name!r}: {error}") from error


def measured(name: str, width: int, positions: int, options: Mapping[str, Any] | None = None) -> Mixer:
    """The same primitive without memory for its weights, to be asked for sizes and costs; do not change it."""
    return _measured(name, width, positions, json.dumps(options or {}, sort_keys=True))


@lru_cache(maxsize=1024)
def _measured(name: str, width: int, positions: int, options: str) -> Mixer:
    with torch.device("meta"):
        return build_mixer(name, width, positions, json.loads(options))


def _check_value(name: str, option: str, value: Any, default: Any) -> None:
    """Options take what their defaults are; a default of None stands for a whole number that follows the width."""
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        fits, expected = (
            isinstance(value, int | float) and not isinstance(value, bool) and value > 0,
            "a number above 0",
        )
    elif isinstance(default, str):
        fits, expected = isinstance(value, str), "text"
    else:
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        fits, expected = whole or (value is None and default is None), "a whole number above 0"
    if not fits:
        raise ManticoreError(f"layer {name!r}: {option} is {value!r} (expected {expected}). Fix: change {option}")
