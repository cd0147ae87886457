"""Measures what the blocks, hand-overs and ends of a supernet cost: by counting, and by the clock of this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.hybrid.decoding import CachedGenerationMixin
from manticore.hybrid.inputs import Part
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.modes import kept_modes
from manticore.option_types import COSTS, Workload
from manticore.search.costs import Cost, CostTable
from manticore.search.timing import FEWEST_TOKENS, ROUNDS, Clock
from manticore.search.walks import Walks, whole_example
from manticore.training.budget import cached_bytes, layer_caches, measured_without_data, whole_sequences

TOKENS = 4096
"""Of the workload that nobody named."""
DECODING = frozenset({"cache_bytes", "state_bytes", "decode_ms"})
"""Costs of a model that generates."""
TIMES = {"decode_ms": Clock.decode, "prefill_ms": Clock.read}
"""Costs that are not counted but timed."""


def cost_table(
    hybrid: ManticorePreTrainedModel,
    workload: str | None = None,
    limits: Iterable[str] = (),
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> CostTable:
    """The costs of a supernet's paths.

    What is counted is exact: a path costs what its discretized hybrid does.

    Args:
        hybrid: a supernet that generates or classifies; left as it is.
        workload: such as ``"tokens=4096,batch=1"``; None: 4,096 tokens, or as many as all components have positions
            for. ``cache_bytes`` is what a cache of so many tokens holds, states included, and ``state_bytes`` that part
            which one token more does not add to; ``flops_per_token`` is a token's mean share of reading a sequence;
            ``prefill_ms`` is reading the batch, with generation's cache; ``decode_ms`` is the last token of each
            sequence, with all others cached.
        limits: names of costs. All counts are in the table in any case, times are measured if they are among these.
        rounds: measurements of each time, interleaved, of which the median counts.
        clock: gives seconds.

    Raises:
        ManticoreError: a workload beyond a component's positions or too short to time decoding, or decoding of a
            classifier.
    """
    limits, generates = list(limits), isinstance(hybrid, CachedGenerationMixin)
    unfit = [name for name in limits if name in DECODING and not generates]
    if unfit:
        raise ManticoreError(f"search: max: {unfit[0]}, but a classifier does not decode. Fix: leave it out")
    at = _workload(hybrid, workload)
    if "decode_ms" in limits and at.tokens < FEWEST_TOKENS:
        raise ManticoreError(
            f"search: workload: decode_ms is timed with {FEWEST_TOKENS} tokens or more, got {at}. "
            f"Fix: workload: {at._replace(tokens=FEWEST_TOKENS)}"
        )
    found = {"parameters": _parameters(hybrid)}
    with kept_modes(hybrid), whole_sequences(hybrid), torch.no_grad():
        hybrid.eval()
        found["flops_per_token"] = measured_without_data(hybrid, lambda copy: _flops(copy, at.tokens))
        if generates:
            found |= _cached(hybrid, at)
        for name, measure in TIMES.items():
            if name in limits:
                found[name] = measure(Clock(hybrid, at, clock), rounds)
    return CostTable({name: found[name] for name in COSTS if name in found}, at)


def _workload(hybrid: ManticorePreTrainedModel, text: str | None) -> Workload:
    k, limit = min(hybrid._limits.items(), key=lambda item: item[1], default=(0, None))
    if text is None:
        return Workload(TOKENS if limit is None else min(TOKENS, limit), 1)
    at = Workload.read(text)
    if limit is not None and at.tokens > limit:
        raise ManticoreError(
            f"search: workload: {at.tokens:,} tokens, but {hybrid._named(k)} has positions for {limit:,}. "
            f"Fix: workload: {at._replace(tokens=limit)}"
        )
    return at


def _parameters(hybrid: ManticorePreTrainedModel) -> Cost:
    """Parameters, shared ones once; embeddings and head only where the path begins and ends."""
    walks, blocks, rests, tables = Walks(hybrid), [], [], []
    for k, runner in enumerate(hybrid.runners):
        assert runner is not None
        edges = hybrid.config.boundaries[k]
        blocks.append([sum(_sizes(*runner.layers[a:b]).values()) for a, b in itertools.pairwise(edges)])
        ends = [_sizes(runner.model.get_input_embeddings()), _sizes(runner.model.get_output_embeddings())]
        elsewhere = {*_sizes(runner.layers), *ends[0], *ends[1]}
        rests.append(sum(size for key, size in _sizes(runner.model).items() if key not in elsewhere))
        classes = _sizes(dict(getattr(hybrid, "score", {})).get(str(k)))
        tables.append((ends[0], ends[1] if hybrid.keeps_lm_heads else classes))
    handovers = {pair: sum(_sizes(mixing).values()) for pair, mixing in walks.joins.items()}
    # a head that is tied to the embeddings counts once
    return walks.table(blocks, handovers, rests, lambda first, head: sum((tables[first][0] | tables[head][1]).values()))


def _sizes(*modules: nn.Module | None) -> dict[int, int]:
    """Of each parameter, by an identity."""
    return {id(p): p.numel() for module in modules if module is not None for p in module.parameters()}


def _flops(hybrid: ManticorePreTrainedModel, tokens: int) -> Cost:
    """Forward FLOPs, each token's share of a sequence."""
    device = next(hybrid.parameters()).device
    part = Part(torch.zeros(1, tokens, dtype=torch.long, device=device), None, None)
    walks = Walks(hybrid)
    with counted_flops() as counter:
        return walks.measured(
            counter.get_total_flops,
            lambda view: view(**whole_example(view, part), use_cache=False),
            part,
            share=1 / (tokens * walks.documents),
        )


def _cached(hybrid: ManticorePreTrainedModel, at: Workload) -> dict[str, Cost]:
    """What caches of so many tokens hold, and the part of it that does not grow."""
    walks = Walks(hybrid)
    whole: list[list[float]] = []
    stays: list[list[float]] = []
    for config, edges in zip(hybrid.config.components, hybrid.config.boundaries):
        beside = at.tokens - 1 or 2
        here, there = (layer_caches(config, tokens, hybrid.dtype) for tokens in (at.tokens, beside))
        blocks = [range(a, b) for a, b in itertools.pairwise(edges)]
        held = [cached_bytes(here, block) for block in blocks]
        grown = [abs(size - cached_bytes(there, block)) for size, block in zip(held, blocks)]
        whole.append([at.batch * size for size in held])
        stays.append([at.batch * (size - at.tokens * more) for size, more in zip(held, grown)])
    nowhere = [0] * len(whole)
    tables = [walks.table(blocks, {}, nowhere, lambda first, head: 0) for blocks in (whole, stays)]
    return dict(zip(("cache_bytes", "state_bytes"), tables))
