"""Counted costs of a model: FLOPs of a training step or a token, parameters, bytes of cache.

FLOPs are counted by torch's counter (a multiply-add is 2 FLOPs; matrix products, convolutions, attention and every
kernel with a registered formula count, element-wise work does not). It runs on a copy of the model without data:
tensors that have shapes only, on the CPU, so that every machine counts the same. The copy has the live model's
structure and ``requires_grad`` pattern, adapters and exchanged kernels included. An operator of an unknown library
has no formula and would count as zero, so it raises.
Shapes: B batch, T tokens.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from manticore.components.cache_argument import cache_in
from manticore.components.positions import context_length
from manticore.errors import ManticoreError, in_brief
from manticore.flops import counted_flops
from manticore.kernels.mamba import use_selective_scan
from manticore.modes import kept_modes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=PreTrainedModel)
logger = logging.getLogger(__name__)

_NEEDS_DATA = (RuntimeError, NotImplementedError, TypeError, ValueError)
"""What a forward pass raises that looks at values, or calls an operator that needs them."""
_NO_TOKEN = -1
COUNTED: dict[str, int] = {}
"""FLOPs that this process has counted, by all that they depend on; what a fork counts can be added."""
_cached: dict[str, list[dict[int, int]]] = {}


def flops_per_step(model: PreTrainedModel, batch_size: int, length: int, *, backward: bool = True) -> int:
    """FLOPs of one step on ``[batch_size, length]`` tokens: forward, and backward to what ``requires_grad``.

    A model that compares two documents reads so many of each.

    Raises:
        ManticoreError: the model uses an operator whose FLOPs nobody has written down.
    """
    key = _key(model, batch_size, length, backward)
    if key not in COUNTED:
        mixing = getattr(model, "mixing", None)
        if mixing is not None:
            # which branches are exactly zero is read from values: read here, kept by copies
            mixing.active()
        COUNTED[key] = measured_without_data(model, lambda m: _count(m, batch_size, length, backward))
    return COUNTED[key]


def flops_per_token_forward(model: PreTrainedModel, length: int) -> float:
    """Forward FLOPs per token, averaged over a sequence of `length` tokens."""
    return flops_per_step(model, 1, length, backward=False) / (length * getattr(type(model), "documents", 1))


def steps_within(budget_flops: float, step_flops: int, *, stage: str) -> int:
    """Whole steps that a budget pays for.

    Raises:
        ManticoreError: not even one.
    """
    if budget_flops < step_flops:
        raise ManticoreError(
            f"{stage}: budget_flops is {budget_flops:.3g}, one step costs {step_flops:.3g} FLOPs. "
            "Fix: a larger budget, a smaller batch_size or shorter examples"
        )
    return int(budget_flops) // step_flops


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
    """Stays: states of recurrent and convolutional layers, and weights that follow the text."""


def cache_cost(model: PreTrainedModel, length: int = 64) -> CacheCost:
    """Measure what the layers that `model` keeps, and its output, have cached of `length` / 2 and `length` tokens.

    Each component is laid out without data from its configuration, so that this holds for discretized hybrids. A
    layer with a sliding window grows only until its window is full: a `length` beyond twice the window shows such
    a layer's cache as state.
    """
    length = min(length, *(context_length(config) or length for config, _ in _kept_layers(model)))
    short, long = (
        sum(
            cached_bytes(layer_caches(config, tokens, model.dtype), layers)
            for config, layers in _kept_layers(model)
            if layers
        )
        for tokens in (length // 2, length)
    )
    per_token = (long - short) // (length - length // 2)
    state_bytes = long - per_token * length
    mixing: Any = getattr(model, "mixing", None)
    if mixing is not None:
        output: Any = model.output
        state_bytes += output.state_bytes(len(mixing.output_weights()), model.config.vocab_size)
    return CacheCost(bytes_per_token=per_token, state_bytes=state_bytes)


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes by which the cache of one sequence grows per token."""
    return cache_cost(model).bytes_per_token


def _kept_layers(model: PreTrainedModel) -> list[tuple[PreTrainedConfig, list[int]]]:
    """Each component's configuration and the layers of it that run."""
    if getattr(model, "mixing", None) is None:
        return [(model.config, list(range(model.config.num_hidden_layers)))]
    kept: list[tuple[PreTrainedConfig, list[int]]] = []
    for k, config in enumerate(model.config.components):
        edges, path = model.config.boundaries[k], model.config.path
        blocks = [n for n in range(model.config.num_blocks) if path is None or path[n] == k]
        kept.append((config, [layer for n in blocks for layer in range(edges[n], edges[n + 1])]))
    return kept


def layer_caches(config: PreTrainedConfig, tokens: int, dtype: torch.dtype) -> list[dict[int, int]]:
    """What each layer of a component has cached of one sequence, laid out without data.

    Args:
        config: of the component.
        tokens: of the sequence.
        dtype: of the model that the bytes are those of.

    Returns:
        Per layer the bytes of its tensors, by an identity: layers may share one.
    """

    def build(precision: torch.dtype | None) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=precision or dtype).eval()
        use_selective_scan(model)
        return model

    def measure(model: PreTrainedModel) -> list[dict[int, int]]:
        with torch.no_grad():
            output = model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True)
        # what is cached in the model's precision, whichever that is here, counts in the live model's
        return [
            {
                id(t): t.numel() * (dtype.itemsize if t.dtype == model.dtype else t.element_size())
                for t in cached_tensors(layer, set())
                if t.is_floating_point()
            }
            for layer in cache_in(output).layers
        ]

    key = _hash(config.to_json_string(use_diff=False), tokens, dtype)
    if key not in _cached:
        _cached[key] = _measure_without_data(build, measure)
    return _cached[key]


def cached_bytes(caches: Sequence[Mapping[int, int]], layers: Iterable[int]) -> int:
    """Bytes that some of a component's layers have cached; a tensor that several share counts once."""
    return sum({key: size for layer in layers for key, size in caches[layer].items()}.values())


def cached_tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that a layer of a cache holds, once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from cached_tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from cached_tensors(item, seen)
    elif type(value).__module__ == "transformers.cache_utils":
        yield from cached_tensors(vars(value), seen)


def _count(model: PreTrainedModel, batch_size: int, length: int, backward: bool) -> int:
    input_ids = torch.zeros(batch_size, length, dtype=torch.long, device=_device(model))
    inputs = {"input_ids": input_ids}
    if getattr(type(model), "documents", 1) == 2:
        inputs["input_ids_2"] = input_ids
    model.train(backward)
    with torch.set_grad_enabled(backward), counted_flops() as counter, whole_sequences(model):
        logits = model(**inputs, use_cache=False).logits
        if backward and logits.requires_grad:
            trained = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    return counter.get_total_flops()


@contextmanager
def whole_sequences(model: PreTrainedModel) -> Iterator[None]:
    """A classifier is not asked where sequences end: without a mask, nothing else would tell."""
    if not hasattr(type(model), "documents"):
        yield
        return
    padding, model.config.pad_token_id = model.config.pad_token_id, _NO_TOKEN
    try:
        yield
    finally:
        model.config.pad_token_id = padding


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device


def measured_without_data(model: _Model, measure: Callable[[_Model], _T]) -> _T:
    """`measure` of a copy without data; of the model itself where such a copy cannot run."""
    try:
        return _measure_without_data(lambda dtype: copy_without_data(model, dtype), measure)
    except _NEEDS_DATA as error:
        logger.warning(
            "%s does not run without data (%s): it is measured with data, which takes the time of one step",
            type(model).__name__,
            in_brief(error),
        )
        devices = [_device(model)] if _device(model).type != "cpu" else []
        with torch.random.fork_rng(devices), kept_modes(model):
            return measure(model)


def _measure_without_data(build: Callable[[torch.dtype | None], _Model], measure: Callable[[_Model], _T]) -> _T:
    """`measure` of what `build` makes for a precision (None: the model's own), inside a mode without data."""
    # torch logs a traceback of what is about to be tried in another way
    complaints = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, complaints.disabled = complaints.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return measure(build(None))
    except _NEEDS_DATA:
        # mixtures of experts have shapes for their grouped products in this precision only
        with FakeTensorMode(allow_non_fake_inputs=True):
            return measure(build(torch.bfloat16))
    finally:
        complaints.disabled = was_disabled


def copy_without_data(model: _Model, dtype: torch.dtype | None = None) -> _Model:
    """A deep copy whose parameters and buffers have shapes, but no values; to be called in a mode of fake tensors."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        kept = tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype
        empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=kept)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    tokenizer = getattr(model, "tokenizer", None)
    memo[id(tokenizer)] = tokenizer
    skeleton = copy.deepcopy(model, memo)
    # training and evaluation run with it, so that is what counts
    use_selective_scan(skeleton)
    return skeleton


def _key(model: PreTrainedModel, batch_size: int, length: int, backward: bool) -> str:
    """Everything that the count depends on."""
    mixing = getattr(model, "mixing", None)
    return _hash(
        model,
        model.config.to_json_string(use_diff=False),
        [m.config._attn_implementation for m in model.modules() if isinstance(m, PreTrainedModel)],
        [p.requires_grad for p in model.parameters()],
        # branches of exactly zero weight are skipped
        [p.eq(0).tolist() for p in mixing.mixture_parameters()] if mixing is not None else None,
        [getattr(module, "gradient_checkpointing", False) for module in model.modules()],
        (batch_size, length, backward),
    )


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
