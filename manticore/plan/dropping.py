"""What per-sequence discretization saves, as bounds: nothing is dropped, or one component is left of each text.

Which components a text makes unlikely, and when, nobody knows before it is read. While a model trains nothing is
dropped, so that stages cost what they cost without it.

Shapes: T tokens, K components.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from manticore.components.runner import Runner
from manticore.components.selfcheck import continues_by_one_token_only
from manticore.components.state_cache import own_cache
from manticore.components.stunted import FAR, stunted
from manticore.errors import ManticoreError
from manticore.hybrid.survivors import first_stretch, next_stretch
from manticore.kernels.mamba import fast_scan
from manticore.plan.skeleton import Skeleton
from manticore.training.budget import copy_without_data, counted_flops


@dataclass(frozen=True)
class Reading:
    """What one text costs, of which certain components are left."""

    flops: float
    """Forward FLOPs of reading an example once, all its tokens scored."""
    token_flops: float
    """Of decoding one token after so many."""
    cache_bytes_per_token: int
    state_bytes: int


@dataclass(frozen=True)
class Dropping:
    """The bounds, of one sequence."""

    below: float
    after: int
    tokens: int
    """Of the example."""
    nothing: Reading
    """Every component reads to the end."""
    alone: dict[str, Reading]
    """Component → it alone is left as early as can be."""


def dropping(
    skeleton: Skeleton,
    mode: FakeTensorMode,
    names: Sequence[str],
    caches: Sequence[Sequence[tuple[int, int]]],
    *,
    below: float,
    after: int,
    tokens: int,
) -> Dropping:
    """Count what each component takes in the stretches in which a text is read.

    Args:
        skeleton: a routed supernet.
        mode: of tensors without data.
        names: of the components.
        caches: per component and block, bytes per token and in all (:func:`~manticore.plan.layer_cache.block_caches`).
        below: ε.
        after: tokens of a text from which on components are dropped.
        tokens: T, of an example.
    """
    goes_on = [_goes_on(runner) for runner in skeleton.hybrid.runners if runner is not None]
    with mode, torch.no_grad():
        hybrid = copy_without_data(skeleton.hybrid).eval()
        runners = [runner for runner in hybrid.runners if runner is not None]
        with fast_scan(hybrid):
            costs = [partial(_flops, runner, kinds) for runner, kinds in zip(runners, skeleton.kinds)]
            stretched = any(goes_on)
            first = first_stretch(tokens, after)
            whole = [
                sum(cost(start if on else 0, stop) for start, stop in _stretches(tokens, first))
                if stretched
                else cost(0, tokens)
                for cost, on in zip(costs, goes_on)
            ]
            begun = [cost(0, first) for cost in costs]
            rest = [0.0 if first == tokens else cost(first if on else 0, tokens) for cost, on in zip(costs, goes_on)]
            step = [cost(tokens, tokens + 1) for cost in costs]
    sizes = [tuple(sum(block[i] for block in cache) for i in (0, 1)) for cache in caches]
    rows = skeleton.hybrid.config.vocab_size
    state = skeleton.hybrid.output.state_bytes
    weights = state(len(names), 0)
    nothing = Reading(
        sum(whole), sum(step), sum(a for a, _ in sizes), sum(b for _, b in sizes) + state(len(names), rows)
    )
    alone = {
        name: Reading(sum(begun) + rest[k], step[k], sizes[k][0], sizes[k][1] + weights) for k, name in enumerate(names)
    }
    return Dropping(below, after, tokens, nothing, alone)


def _stretches(tokens: int, first: int) -> list[tuple[int, int]]:
    """Of a text that is undecided to its end."""
    found = [(0, first)]
    while found[-1][1] < tokens:
        stop = found[-1][1]
        found.append((stop, next_stretch(stop, tokens)))
    return found


def _goes_on(runner: Runner) -> bool:
    """Whether a family continues a cached beginning by several tokens, found on a small model of its configuration."""
    try:
        small = stunted(runner.model, switch=FAR, seed=0)
        return not continues_by_one_token_only(Runner(small))
    except ManticoreError:
        raise
    except Exception:
        # as with any family whose small model cannot be made: the dearer bound
        return False


def _flops(runner: Runner, kinds: Sequence[int], start: int, stop: int) -> float:
    """Of reading the tokens from start to stop, those before being cached, and of their logits."""
    cache = own_cache(runner.model.config) if start else None
    if cache is not None:
        recording = runner.record(_ids(start), cache=cache, use_cache=True)
        for kind in sorted(set(kinds)):
            runner.run(recording, recording.hidden, kind, kind + 1)
    # only now: masks are made for what the cache holds
    recording = runner.record(_ids(stop - start), cache=cache, use_cache=cache is not None)
    count = 0.0
    for kind, layers in Counter(kinds).items():
        with counted_flops() as counter:
            runner.run(recording, recording.hidden, kind, kind + 1)
        count += layers * counter.get_total_flops()
    with counted_flops() as counter:
        runner.logits(lambda recording: recording.hidden, _ids(stop - start))
    return count + counter.get_total_flops()


def _ids(tokens: int) -> Tensor:
    return torch.zeros(1, tokens, dtype=torch.long)
