"""Tiny stacks: one layer of every kind at width 16, with options that make its edges show in short sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manticore.registry import entries
from manticore.stacks.configuration import StackConfig
from manticore.stacks.liv.codes import POOL
from manticore.stacks.modeling import StackForCausalLM

NAMES = [name for name in entries("layer") if name not in (*POOL, "liv")]
"""Without operators by codes, which tests/stacks/test_liv.py goes over."""
VOCABULARY = 31
POSITIONS = 96

OPTIONS: dict[str, dict[str, Any]] = {
    "mh-attention": {"num_heads": 4},
    "grouped-query-attention": {"num_heads": 4, "num_kv_heads": 2},
    "sliding-attention": {"window": 5},
    "mh-sliding-attention": {"num_heads": 4, "window": 5},
    "mh-linear-attention": {"num_heads": 4},
    "mh-gated-linear-attention": {"num_heads": 4, "gate_rank": 4},
    "delta-net": {"num_heads": 4},
    "gated-delta-net": {"num_heads": 4},
    "kimi-delta-attention": {"num_heads": 4, "gate_rank": 3},
    "hyena": {"inner_factor": 2, "proj_groups": 2},
    "mh-hyena": {"num_groups": 4, "proj_groups": 2},
    "hyena-experts": {"num_experts": 4, "expert_width": 4, "filter_order": 3},
    "mamba-2": {"num_heads": 4},
    "rwkv5-time-mixer": {"num_heads": 4},
    "rwkv6-time-mixer": {"num_heads": 4, "mix_rank": 3, "decay_rank": 4},
    "rwkv5-channel-mixer": {"inner_width": 24},
    "rwkv6-channel-mixer": {"inner_width": 24},
    "rwkv7-time-mixer": {"num_heads": 4, "decay_rank": 3, "rate_rank": 4, "value_rank": 2, "gate_rank": 5},
    "rwkv7-channel-mixer": {"inner_width": 24},
    "moe-mlp": {"num_experts": 4, "expert_width": 4},
}


def tiny_config(*layers: Any, **settings: Any) -> StackConfig:
    """A configuration with those layers: names, or entries with options and sharing of their own."""
    options = {name: OPTIONS[name] for name in layers if isinstance(name, str) and name in OPTIONS}
    return StackConfig(
        layers=list(layers),
        layer_options={**options, **settings.pop("layer_options", {})},
        vocab_size=VOCABULARY,
        hidden_size=settings.pop("hidden_size", 16),
        max_position_embeddings=POSITIONS,
        **settings,
    )


def tiny_stack(*layers: Any, seed: int = 0, **settings: Any) -> StackForCausalLM:
    """A stack of those layers in float64, in evaluation mode, all of its weights away from their starts."""
    torch.manual_seed(seed)
    model = StackForCausalLM(tiny_config(*layers, **settings)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(batch: int = 2, length: int = 40, seed: int = 1) -> torch.Tensor:
    """Random ids; 0, which some tests take as padding, is not among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def assert_older_start(model: torch.nn.Module) -> None:
    """Every linear map is drawn from N(0, 0.02), every bias of one is 0."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weights = module.weight.detach()
            # four standard errors of a standard deviation
            assert float(weights.std()) == pytest.approx(0.02, rel=4 / (2 * weights.numel()) ** 0.5), name
            assert module.bias is None or not bool(module.bias.any()), name
