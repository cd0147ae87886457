"""What decoding keeps of one sequence, block by block, measured on one layer of each kind without data."""

from __future__ import annotations

import copy
import itertools

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.initialization import no_init_weights

from manticore.components.runner import Runner
from manticore.hybrid.configuration import cut
from manticore.kernels.mamba import use_selective_scan
from manticore.plan.bytes_alive import tensor_bytes
from manticore.plan.skeleton import share_layers
from manticore.training.budget import cached_tensors, copy_without_data

_SHORT, _LONG = 32, 64


def component_cache(
    config: PreTrainedConfig, num_blocks: int, mode: FakeTensorMode, dtype: torch.dtype
) -> list[tuple[int, int]]:
    """Per block the bytes that a token adds, and those that stay.

    A layer with a sliding window grows only until its window is full.
    """
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()
    kinds = share_layers(Runner(model, []).layers)
    with mode, torch.no_grad():
        copied = copy_without_data(model)
        use_selective_scan(copied)
        short, long = (_layer_bytes(Runner(copied), kinds, tokens) for tokens in (_SHORT, _LONG))
    edges = cut(config.num_hidden_layers, num_blocks)
    found = []
    for start, stop in itertools.pairwise(edges):
        at_short, at_long = sum(short[k] for k in kinds[start:stop]), sum(long[k] for k in kinds[start:stop])
        per_token = (at_long - at_short) // (_LONG - _SHORT)
        found.append((per_token, at_long - per_token * _LONG))
    return found


def _layer_bytes(runner: Runner, kinds: list[int], tokens: int) -> dict[int, int]:
    """Of each kind of layer, after so many tokens."""
    cache = DynamicCache(config=runner.model.config)
    recording = runner.record(torch.zeros(1, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
    found = {}
    for kind in sorted(set(kinds)):
        runner.run(recording, recording.hidden, kind, kind + 1)
        tensors = cached_tensors(cache.layers[kind], set())
        found[kind] = sum(tensor_bytes(t) for t in tensors if t.is_floating_point())
    return found
