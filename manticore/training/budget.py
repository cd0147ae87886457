"""Counted costs of a model: FLOPs of a training step or a token, parameters, bytes of cache.

FLOPs are counted by torch's counter (a multiply-add is 2 FLOPs; matrix products, convolutions, attention and every
kernel with a registered formula count, element-wise work does not) on a copy of the model without data, on the meta
device. The copy has the live model's structure and ``requires_grad`` pattern, adapters and exchanged kernels
included. An operator of an unknown library has no formula and would count as zero, so it raises.
Letters: B batch, T tokens.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from manticore.errors import ManticoreError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_PLAIN_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler"})
_counted: dict[str, int] = {}


def flops_per_step(model: PreTrainedModel, batch_size: int, length: int, *, backward: bool = True) -> int:
    """FLOPs of one step on ``[batch_size, length]`` tokens: forward, and backward to what ``requires_grad``.

    Raises:
        ManticoreError: the model uses an operator whose FLOPs nobody has written down.
    """
    key = _key(model, batch_size, length, backward)
    if key not in _counted:
        with _without_data(model) as skeleton:
            _counted[key] = _count(skeleton, batch_size, length, backward)
    return _counted[key]


def flops_per_token_forward(model: PreTrainedModel, length: int) -> float:
    """Forward FLOPs per token, averaged over a sequence of `length` tokens."""
    return flops_per_step(model, 1, length, backward=False) / length


def steps_within(budget_flops: int, step_flops: int, *, stage: str) -> int:
    """Whole steps that a budget pays for.

    Raises:
        ManticoreError: not even one.
    """
    if budget_flops < step_flops:
        raise ManticoreError(
            f"{stage}: budget_flops is {budget_flops:.3g}, one step costs {step_flops:.3g} FLOPs. "
            "Fix: a larger budget, a smaller batch_size or shorter examples"
        )
    return budget_flops // step_flops


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; shared ones count once."""

    total: int
    trainable: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """All parameters of `model`, and those that ``requires_grad``."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ParameterCount(sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains))


@dataclass(frozen=True)
class CacheCost:
    """Memory that decoding one sequence takes."""

    bytes_per_token: int
    """Grows with every token: keys and values of the attention layers."""
    state_bytes: int
    """Stays: states of recurrent and convolutional layers."""


def cache_cost(model: PreTrainedModel, length: int = 64) -> CacheCost:
    """Measure the cache after prefills of `length` / 2 and `length` tokens.

    A layer with a sliding window grows only until its window is full: a `length` beyond twice the window shows
    such a layer's cache as state.
    """
    with _without_data(model) as skeleton, torch.no_grad():
        skeleton.eval()
        short, long = (_cache_bytes(skeleton, tokens) for tokens in (length // 2, length))
    per_token = (long - short) // (length - length // 2)
    return CacheCost(bytes_per_token=per_token, state_bytes=long - per_token * length)


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes by which the cache of one sequence grows per token."""
    return cache_cost(model).bytes_per_token


def _cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    input_ids = torch.zeros(1, tokens, dtype=torch.long, device=_device(model))
    output = model(input_ids=input_ids, use_cache=True)
    cache = output.get("past_key_values", output.get("cache_params"))
    return sum(t.numel() * t.element_size() for t in _tensors(cache, set()) if t.is_floating_point())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor reachable from a cache, once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith(("transformers.cache_utils", "manticore.")):
        yield from _tensors(vars(value), seen)


class _KnownOperators(TorchDispatchMode):
    """Stops at the first operator that the FLOP counter would take for free without knowing it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in _PLAIN_NAMESPACES and func._overloadpacket not in flop_registry:
            raise ManticoreError(
                f"budget: the FLOPs of operator {func} are unknown and would count as zero. "
                "Fix: register a formula with torch.utils.flop_counter.register_flop_formula"
            )
        return func(*args, **(kwargs or {}))


def _count(model: PreTrainedModel, batch_size: int, length: int, backward: bool) -> int:
    input_ids = torch.zeros(batch_size, length, dtype=torch.long, device=_device(model))
    model.train(backward)
    # the counter is inside: it breaks composite operators into parts before they are looked at
    with torch.set_grad_enabled(backward), _KnownOperators(), FlopCounterMode(display=False) as counter:
        logits = model(input_ids=input_ids, use_cache=False).logits
        if backward and logits.requires_grad:
            logits.sum().backward()
    return counter.get_total_flops()


def _device(model: PreTrainedModel) -> torch.device:
    return model.get_input_embeddings().weight.device


class _Without:
    """Context of a copy of a model without data."""


def _without_data(model: PreTrainedModel) -> Any:
    raise TypeError


def _key(model: PreTrainedModel, batch_size: int, length: int, backward: bool) -> str:
    """Everything that the count depends on."""
    parts = [
        repr(model),
        model.config.to_json_string(use_diff=False),
        repr([p.requires_grad for p in model.parameters()]),
        repr((batch_size, length, backward)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
