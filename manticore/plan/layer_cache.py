"""What decoding keeps of one sequence, block by block, measured on one layer of each kind without data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from manticore.components.runner import Runner
from manticore.components.state_cache import own_cache
from manticore.plan.bytes_alive import tensor_bytes
from manticore.plan.skeleton import Skeleton
from manticore.training.budget import cached_tensors, copy_without_data

_SHORT, _LONG = 32, 64


def block_caches(skeleton: Skeleton, mode: FakeTensorMode) -> list[list[tuple[int, int]]]:
    """Per component and block the bytes that a token adds, and those that stay.

    A layer with a sliding window grows only until its window is full.
    """
    found = []
    with mode, torch.no_grad():
        hybrid = copy_without_data(skeleton.hybrid).eval()
        for runner, kinds, edges in zip(hybrid.runners, skeleton.kinds, hybrid.config.boundaries):
            assert runner is not None
            short, long = (_layer_bytes(runner, kinds, tokens) for tokens in (_SHORT, _LONG))
            blocks = []
            for start, stop in itertools.pairwise(edges):
                at_short, at_long = sum(short[k] for k in kinds[start:stop]), sum(long[k] for k in kinds[start:stop])
                per_token = (at_long - at_short) // (_LONG - _SHORT)
                blocks.append((per_token, at_long - per_token * _LONG))
            found.append(blocks)
    return found


def _layer_bytes(runner: Runner, kinds: Sequence[int], tokens: int) -> dict[int, int]:
    """Of each kind of layer, after so many tokens."""
    cache = own_cache(runner.model.config)
    recording = runner.record(torch.zeros(1, tokens, dtype=torch.long), cache=cache, use_cache=True)
    found = {}
    for kind in sorted(set(kinds)):
        runner.run(recording, recording.hidden, kind, kind + 1)
        tensors = cached_tensors(cache.layers[kind], set())
        found[kind] = sum(tensor_bytes(t) for t in tensors if t.is_floating_point())
    return found
