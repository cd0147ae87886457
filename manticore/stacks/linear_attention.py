"""Attention without a softmax: linear attention with a learned feature map, and gated linear attention.

    linear    o_t = S_t^T f(q_t) / (f(q_t) . sum_{s<=t} g(k_s) + 1e-12),   S_t = S_{t-1} + g(k_t) v_t^T
              f and g products of two affine maps of a head
    gated     S_t = diag(w_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t / sqrt(K),   w_t = sigmoid(W2 W1 x_t + b)^(1/16)
              y_t = out(norm(o_t) * silu(g_t))                        (Yang et al., 2023)

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from manticore.option_types import Count, Positive
from manticore.stacks.mixer import (
    MatrixState,
    Step,
    compute_dtype,
    head_width,
    linear_flops,
    merge_heads,
    split_heads,
)
from manticore.stacks.recurrences import channel_decay, channel_decay_flops, scalar_decay, scalar_decay_flops

_LEAST_NORMALISER = 1e-12
_XAVIER_GAIN = 2**-2.5


class FeatureMap(nn.Module):
    """``(W x + b) * (W' x + b')`` on every head: ``[…, K]`` → ``[…, K]``."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(head_dim, head_dim)
        self.second = nn.Linear(head_dim, head_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.second(x)


class LinearAttention(MatrixState):
    """Linear attention with a learned feature map.

    Args:
        num_heads: H.
    """

    cache_type = "linear_attention"

    def __init__(self, width: int, positions: int, *, num_heads: Count = 1) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(width, num_heads)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_features = FeatureMap(self.head_dim)
        self.k_features = FeatureMap(self.head_dim)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        dtype = compute_dtype(hidden)
        q = self.q_features(split_heads(self.q_proj(hidden), self.num_heads)).to(dtype)
        k = self.k_features(split_heads(self.k_proj(hidden), self.num_heads)).to(dtype)
        v = split_heads(self.v_proj(hidden), self.num_heads).to(dtype)
        if step.padding is not None:
            k = k * step.padding[:, None]
        # one more value channel that is always 1 sums the keys for the normaliser
        out, state = scalar_decay(q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1), state=step.state)
        step.keep(state)
        out = out[..., :-1] / (out[..., -1:] + _LEAST_NORMALISER)
        return self.out_proj(merge_heads(out).to(hidden.dtype))

    def flops(self, tokens: int) -> int:
        maps = (self.q_features.first, self.q_features.second, self.k_features.first, self.k_features.second)
        return (
            linear_flops((self.q_proj, self.k_proj, self.v_proj, self.out_proj), tokens)
            + linear_flops(maps, tokens * self.num_heads)
            + scalar_decay_flops(tokens, self.num_heads, self.head_dim, self.head_dim + 1)
        )


def mh_linear_attention(width: int, positions: int, *, num_heads: Count = 16) -> LinearAttention:
    """Linear attention with many heads.

    Args:
        width: D.
        positions: unused.
        num_heads: H.
    """
    return LinearAttention(width, positions, num_heads=num_heads)


class GatedLinearAttention(MatrixState):
    """Linear attention whose key channels decay by gates of the input.

    Args:
        num_heads: H.
        gate_rank: of the map from the input to the decays.
        gate_normaliser: the decays' logarithms are divided by this.
    """

    cache_type = "linear_attention"

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        num_heads: Count = 1,
        gate_rank: Count = 16,
        gate_normaliser: Positive = 16.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(width, num_heads)
        self.gate_normaliser = gate_normaliser
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.g_proj = nn.Linear(width, width, bias=False)
        self.decay_down = nn.Linear(width, gate_rank, bias=False)
        self.decay_up = nn.Linear(gate_rank, width)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        dtype = compute_dtype(hidden)
        q, k, v, decay = (
            split_heads(x, self.num_heads).to(dtype)
            for x in (
                self.q_proj(hidden),
                step.silence(self.k_proj(hidden)),
                self.v_proj(hidden),
                self.decay_up(self.decay_down(hidden)),
            )
        )
        log_decay = F.logsigmoid(decay) / self.gate_normaliser
        out, state = channel_decay(q * self.head_dim**-0.5, k, v, log_decay, step.state)
        step.keep(state)
        out = merge_heads(self.norm(out.to(hidden.dtype)))
        return self.out_proj(out * F.silu(self.g_proj(hidden)))

    def flops(self, tokens: int) -> int:
        layers = [layer for layer in self.children() if isinstance(layer, nn.Linear)]
        return linear_flops(layers, tokens) + channel_decay_flops(tokens, self.num_heads, self.head_dim, self.head_dim)

    def reset_extra_parameters(self) -> None:
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                init.xavier_uniform_(layer.weight, gain=_XAVIER_GAIN)


def mh_gated_linear_attention(
    width: int, positions: int, *, num_heads: Count = 8, gate_rank: Count = 16, gate_normaliser: Positive = 16.0
) -> GatedLinearAttention:
    """Gated linear attention with many heads.

    Args:
        width: D.
        positions: unused.
        num_heads: H.
        gate_rank: of the map from the input to the decays.
        gate_normaliser: the decays' logarithms are divided by this.
    """
    return GatedLinearAttention(
        width, positions, num_heads=num_heads, gate_rank=gate_rank, gate_normaliser=gate_normaliser
    )
