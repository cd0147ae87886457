"""What a stack costs, layer by layer, without building it: parameters, state, cache, FLOPs.

What layers share counts once, at the lowest layer that has it.

Shapes: T tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from manticore.stacks.catalogue import measured
from manticore.stacks.configuration import StackConfig
from manticore.stacks.layer_entry import LayerEntry
from manticore.stacks.mixer import Mixer
from manticore.stacks.modeling import StackModel, make_norm


@dataclass(frozen=True)
class LayerSize:
    """One layer of a stack."""

    name: str
    parameters: int
    """Its own and those of its norm; none for weights of a lower layer."""
    state: int
    """Numbers held per sequence after T tokens; neither short convolutions nor what a lower layer holds are counted."""
    fixed_state: bool
    """Whether the state has that size for any T."""
    flops: int
    """Of one forward pass over one sequence of T tokens, without its norm."""


def layer_sizes(config: StackConfig, tokens: int) -> list[LayerSize]:
    """The layers of a stack from the bottom to the top, for sequences of ``tokens`` tokens."""
    with torch.device("meta"):
        norm = sum(parameter.numel() for parameter in make_norm(config).parameters())
    return [
        LayerSize(
            name=name,
            parameters=norm + _own(mixer) * (entry.weights_of is None),
            state=mixer.state_size(tokens),
            fixed_state=mixer.fixed_state,
            flops=mixer.flops(tokens),
        )
        for name, mixer, entry in zip(config.layer_names, config.mixers(), config.entries)
    ]


def _own(mixer: Mixer) -> int:
    return sum(parameter.numel() for parameter in mixer.parameters())


def layer_parameters(config: StackConfig) -> int:
    """Parameters of all layers and their norms; embeddings, last norm and head are left out."""
    return sum(layer.parameters for layer in layer_sizes(config, 1))


def fixed_state(config: StackConfig) -> int:
    """Numbers per sequence in all states that do not grow with it."""
    return sum(layer.state for layer in layer_sizes(config, 1) if layer.fixed_state)


def cache_bytes(config: StackConfig, tokens: int, bytes_per_number: int = 2, batch: int = 1) -> int:
    """Bytes that cached decoding holds after ``tokens`` tokens.

    Keys and values, recurrent states, the last inputs of short convolutions and all inputs of long ones; what layers
    share is held once. A Transformer of 48 layers, 24 of them attention, of width 2048 has 805,306,368 at 4,096 tokens,
    as STAR counts it.

    Args:
        config: the stack.
        tokens: of each sequence.
        bytes_per_number: 2 is bfloat16. Recurrent states are held in float32 at least when a stack runs; here they
            count like the others, as in STAR.
        batch: sequences.
    """
    sizes = (config.hidden_size, config.max_position_embeddings)
    numbers = sum(
        _cached(entry, *sizes, tokens) for entry, slot in zip(config.entries, config.layer_types) if slot != "moe"
    )
    return batch * bytes_per_number * numbers


def state_bytes(config: StackConfig, tokens: int, bytes_per_number: int = 2, batch: int = 1) -> int:
    """Bytes of all states after ``tokens`` tokens as the papers count them: :attr:`LayerSize.state` of all layers.

    Unlike :func:`cache_bytes` without short convolutions, and with the state-space models that filters stand for in
    place of their inputs.

    Args:
        config: the stack.
        tokens: of each sequence.
        bytes_per_number: 2 is bfloat16.
        batch: sequences.
    """
    return batch * bytes_per_number * sum(layer.state for layer in layer_sizes(config, tokens))


def _cached(entry: LayerEntry, width: int, positions: int, tokens: int) -> int:
    """Numbers in the cache of one layer."""
    window = measured(entry.name, width, positions, entry.options).window
    sharing: dict[str, Any] = {"weights_of": 0} if entry.weights_of is not None else {}
    if entry.features_of is not None:
        sharing.update(features_of=0, features=entry.features)
    layer = json.dumps([entry.name, entry.options, sharing], sort_keys=True)
    if window is None:
        # every token adds as much, and windows of short convolutions are whole from the first on
        one, two = (_numbers(layer, width, positions, count) for count in (1, 2))
        return one + (tokens - 1) * (two - one)
    return _numbers(layer, width, positions, min(tokens, window))


@lru_cache(maxsize=1024)
def _numbers(layer: str, width: int, positions: int, tokens: int) -> int:
    """The same, found by running the layer on the meta device above one like it that shares nothing."""
    name, options, sharing = json.loads(layer)
    given = [(name, options), (name, options, sharing)]
    config = StackConfig(layers=given, hidden_size=width, max_position_embeddings=max(positions, tokens))
    cache = DynamicCache(config=config)
    with torch.device("meta"):
        model = StackModel(config)
        hidden = torch.empty(1, tokens, width)
    with torch.no_grad():
        model(inputs_embeds=hidden, past_key_values=cache, use_cache=True)
    held = cache.layers[-1]
    states = [getattr(held, kind, {}).values() for kind in ("conv_states", "recurrent_states")]
    tensors = [getattr(held, "keys", None), getattr(held, "values", None), *(each for kind in states for each in kind)]
    return sum(tensor.numel() for tensor in tensors if tensor is not None)
