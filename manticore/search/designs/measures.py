"""What designs can be judged by beside their training: counted from a configuration, or measured on this machine.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from manticore.components.cache_argument import CACHE_ARGUMENT
from manticore.design_settings import OF_MAD
from manticore.errors import ManticoreError
from manticore.plan.bytes_alive import BytesAlive, tensor_bytes
from manticore.stacks.sizes import cache_bytes, layer_parameters, layer_sizes, state_bytes
from manticore.training.budget import measured_without_data

if TYPE_CHECKING:
    from manticore.option_types import Workload
    from manticore.stacks.configuration import StackConfig
    from manticore.stacks.modeling import StackForCausalLM
    from manticore.tasks.mad.score import ModelScore

ROUNDS = 5
"""Measurements of a time, of which the median counts."""
DECODED = 8
"""Tokens that are decoded in one measurement."""
_BACKWARD = 3
"""A training step costs so many forward passes."""


def costs(config: StackConfig, at: Workload) -> dict[str, float]:
    """What is counted, exactly, without building anything.

    Args:
        config: of the design.
        at: what costs are those of.

    Returns:
        ``parameters``: of all layers and their norms, shared ones once; embeddings, last norm and head left out.
        ``flops``: forward FLOPs of reading a token of a sequence of T, head included.
        ``cache_bytes``: what a cache of T tokens holds in bfloat16, for all B sequences, and ``state_bytes``: all
        states as the papers count them (:mod:`manticore.stacks.sizes`); both hold what layers share once.
    """
    return {
        "parameters": layer_parameters(config),
        "flops": forward_flops(config, at.tokens) / at.tokens,
        "cache_bytes": cache_bytes(config, at.tokens, batch=at.batch),
        "state_bytes": state_bytes(config, at.tokens, batch=at.batch),
    }


def forward_flops(config: StackConfig, tokens: int) -> int:
    """FLOPs of one forward pass over one sequence, head included: what torch's counter counts of the built stack."""
    head = 2 * tokens * config.hidden_size * config.vocab_size
    return head + sum(layer.flops for layer in layer_sizes(config, tokens))


def training_flops(config: StackConfig, tokens: int) -> int:
    """FLOPs of a training step on one sequence: three forward passes, as everywhere in the field.

    Torch's counter, which takes a second to count a new stack, finds a few percent more where attention is computed
    twice in its backward pass.
    """
    return _BACKWARD * forward_flops(config, tokens)


def mad_measures(found: ModelScore) -> dict[str, float]:
    """``mad``, the mean over the tasks, and ``mad:TASK`` of each.

    Raises:
        ManticoreError: a task without a finite score.
    """
    values = {}
    for name, task in found.tasks.items():
        if task.score is None:
            raise ManticoreError(f"{OF_MAD}{name} is not finite: every run of it diverged")
        values[f"{OF_MAD}{name}"] = task.score
    return {"mad": statistics.fmean(values.values()), **values}


@torch.no_grad()
def measured(model: StackForCausalLM, names: Sequence[str], at: Workload) -> dict[str, float]:
    """What is timed, or counted while a stack runs.

    Args:
        model: built; its weights do not matter.
        names: ``prefill_ms``: reading B sequences of T tokens into a cache; ``decode_ms``: a further token of each;
            ``peak_bytes``: the most bytes that weights, cache and what is computed take together in reading them.
        at: T and B.
    """
    model.eval()
    ids = torch.zeros(at.batch, at.tokens, dtype=torch.long, device=model.device)
    found: dict[str, float] = {}
    if "peak_bytes" in names:
        found["peak_bytes"] = measured_without_data(model, lambda copy: _peak(copy, at))
    if "prefill_ms" in names:
        found["prefill_ms"] = _milliseconds(model, lambda: _read(model, ids))
    if "decode_ms" in names:
        before = ids[:, : max(1, at.tokens - DECODED)]
        cache = _read(model, before)

        def decode() -> None:
            _read(model, ids[:, :1], cache)

        found["decode_ms"] = _milliseconds(model, decode, times=DECODED)
    return found


def _read(model: StackForCausalLM, ids: torch.Tensor, cache: Any = None) -> Any:
    cache = model.new_cache() if cache is None else cache
    model(input_ids=ids, use_cache=True, logits_to_keep=1, **{CACHE_ARGUMENT: cache})
    return cache


def _milliseconds(model: StackForCausalLM, run: Callable[[], object], times: int = 1) -> float:
    """The median of several measurements, after one that does not count; on a CPU of one thread's own time."""
    on_cpu, threads = model.device.type == "cpu", torch.get_num_threads()
    # other workers of the machine must not be part of it
    clock = time.thread_time if on_cpu else time.perf_counter
    if on_cpu:
        torch.set_num_threads(1)
    taken = []
    try:
        run()
        for _ in range(ROUNDS):
            begun = _now(model, clock)
            for _ in range(times):
                run()
            taken.append(_now(model, clock) - begun)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * statistics.median(taken) / times


def _now(model: StackForCausalLM, clock: Callable[[], float]) -> float:
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)
    return clock()


def _peak(model: StackForCausalLM, at: Workload) -> int:
    weights = tensor_bytes([*model.parameters(), *model.buffers()])
    with BytesAlive() as alive:
        alive.begin()
        _read(model, torch.zeros(at.batch, at.tokens, dtype=torch.long, device=model.device))
    return weights + alive.peak
