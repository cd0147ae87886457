"""What the tests of hybrids share besides fixtures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from manticore.hybrid.modeling import ManticoreForCausalLM

BLOCKS = 3
MIXINGS = ("translated", "routed", "gated")
Build = Callable[..., ManticoreForCausalLM]


def random_weights(*shape: int, seed: int = 0) -> Tensor:
    """Rows on the simplex, nothing alike."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def at_random_weights(hybrid: ManticoreForCausalLM, seed: int = 0) -> ManticoreForCausalLM:
    """Every probability parameter random, so that a routed hybrid does not follow one weight vector per block."""
    with torch.no_grad():
        for index, parameter in enumerate(hybrid.mixing.mixture_parameters()):
            parameter.copy_(random_weights(*parameter.shape, seed=seed + index))
    return hybrid
