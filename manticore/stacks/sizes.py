"""What a stack costs, layer by layer, without building it: parameters, state, FLOPs.

Shapes: T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import make_norm


@dataclass(frozen=True)
class LayerSize:
    """One layer of a stack."""

    name: str
    parameters: int
    """Its own and those of its norm."""
    state: int
    """Numbers held per sequence after T tokens; short convolutions are not counted."""
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
            parameters=norm + sum(parameter.numel() for parameter in mixer.parameters()),
            state=mixer.state_size(tokens),
            fixed_state=mixer.fixed_state,
            flops=mixer.flops(tokens),
        )
        for name, mixer in zip(config.layer_names, config.mixers())
    ]


def layer_parameters(config: StackConfig) -> int:
    """Parameters of all layers and their norms; embeddings, last norm and head are left out."""
    return sum(layer.parameters for layer in layer_sizes(config, 1))


def fixed_state(config: StackConfig) -> int:
    """Numbers per sequence in all states that do not grow with it."""
    return sum(layer.state for layer in layer_sizes(config, 1) if layer.fixed_state)


def cache_bytes(config: StackConfig, tokens: int, bytes_per_number: int = 2, batch: int = 1) -> int:
    """Bytes of all keys, values and states after ``tokens`` tokens of ``batch`` sequences; short convolutions' are not
    counted."""
    return batch * bytes_per_number * sum(layer.state for layer in layer_sizes(config, tokens))
