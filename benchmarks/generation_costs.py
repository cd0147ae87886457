"""Where the time of cached decoding goes: layers, what families do around them, mixing, Manticore, generate.

Each kind of time is CPU time with what it calls of another kind left out, so that all make the whole. The
functions that begin a kind are wrapped while it is measured; that costs some microseconds per layer, in parents and
hybrids alike, so speeds are measured without it.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manticore.components.cache_argument import cache_argument, cache_in
from manticore.components.runner import Runner

KINDS = ("layers", "surroundings", "mixing", "manticore", "generate")


class Clock:
    """Seconds of CPU time per kind."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts as ``kind``."""

        # with the signature, since generate looks for arguments there
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - start
                self.seconds[kind] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        return run


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[Clock]:
    """A parent or a hybrid whose functions are timed."""
    clock = Clock()
    hybrid = hasattr(model, "runners")
    runners = [r for r in model.runners if r is not None] if hybrid else [Runner(model)]
    wrapped: list[tuple[Any, str, str]] = [(model, "forward", "manticore")] if hybrid else []
    if hybrid:
        wrapped += [(model.mixing, name, "mixing") for name in ("enter", "head_inputs", "mixed")]
    for runner in runners:
        wrapped += [(layer, "forward", "layers") for layer in runner.layers]
        wrapped += [(runner.model, "forward", "surroundings"), (runner.model.base_model, "forward", "surroundings")]
        wrapped.append((runner, "_stand_in", "manticore"))
    for owner, name, kind in wrapped:
        owner.__dict__[name] = clock.timed(kind, getattr(owner, name))
    try:
        yield clock
    finally:
        for owner, name, _ in wrapped:
            del owner.__dict__[name]


def milliseconds(model: PreTrainedModel, ids: Tensor, given: dict[str, Any], rounds: int) -> dict[str, float]:
    """Milliseconds of each kind in one new token, the median of ``rounds``."""
    found = []
    for _ in range(rounds):
        with _watched(model) as clock:
            clock.timed("generate", model.generate)(ids, **given)
        found.append({kind: 1e3 * clock.seconds[kind] / given["max_new_tokens"] for kind in KINDS})
    return {kind: statistics.median(each[kind] for each in found) for kind in KINDS}


@torch.no_grad()
def decode(models: Sequence[PreTrainedModel], ids: Tensor, tokens: int, *, in_turn: bool) -> None:
    """Decode ``tokens`` with every model: one model after the other, or all of them token by token in turn."""
    states: list[dict[str, Any]] = []
    for model in models:
        output = model(input_ids=ids, use_cache=True)
        states.append({cache_argument(type(model).forward): cache_in(output)})
    pairs = [(model, state) for model, state in zip(models, states)]
    order = pairs * tokens if in_turn else [pair for pair in pairs for _ in range(tokens)]
    for model, state in order:
        model(input_ids=ids[:, -1:], use_cache=True, **state)
