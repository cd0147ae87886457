"""What a model calls the cache that its forward pass reads, extends and returns: it depends on transformers' version.

From 5.24 on every model says ``cache``; before, most said ``past_key_values`` and those of recurrent layers alone
``cache_params``. transformers takes the old names until 5.40 and warns; hybrids and stacks take either without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

from manticore.errors import ManticoreError

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""All of them, the newest first."""

CACHE_ARGUMENT = next(name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})
"""What this version of transformers calls it in ``generate`` and in outputs."""


def named(cache: Any) -> dict[str, Any]:
    """The cache under the name that this version of transformers has for it, to call or to return with."""
    return {CACHE_ARGUMENT: cache}


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name under which a forward pass takes its cache."""
    known = inspect.signature(forward).parameters
    return next((name for name in (CACHE_ARGUMENT, *CACHE_NAMES) if name in known), CACHE_ARGUMENT)


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among arguments or in an output, under whichever name; None where there is none."""
    return next((values[name] for name in values if name in CACHE_NAMES and values[name] is not None), None)


def one_cache(past_key_values: Any, cache: Any) -> Any:
    """The cache given under either name, or None.

    Raises:
        ManticoreError: two caches.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ManticoreError("forward: past_key_values and cache name the same argument. Fix: give one of them")
    return cache if past_key_values is None else past_key_values
