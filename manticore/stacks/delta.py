"""Delta-net, gated delta-net and Kimi delta attention: linear attention that replaces what a key held.

    S_t = a_t S_{t-1} + k_t u_t^T,   u_t = b_t (v_t - a_t S_{t-1}^T k_t),   o_t = S_t^T q_t / sqrt(K)

q, k, v pass a short convolution and SiLU; q and k are scaled to length 1; b_t = sigmoid. Delta-net has a_t = 1
(Schlag et al., 2021; Yang et al., 2024); the gated one a_t = exp(-exp(A) softplus(W x_t + c)) and an output gate
(Yang, Kautz & Hatamizadeh, 2024). Kimi delta attention decays every key channel by itself: a_t is a vector of K
numbers, a_t = exp(-exp(A) softplus(W_up W_down x_t + c)) with A per head, and its output gate is a sigmoid behind a map
of low rank (Kimi Team, "Kimi Linear", 2025).

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from manticore.option_types import Count
from manticore.stacks.mixer import (
    MatrixState,
    Step,
    compute_dtype,
    head_width,
    linear_flops,
    merge_heads,
    split_heads,
)
from manticore.stacks.recurrences import (
    channel_delta_rule,
    channel_delta_rule_flops,
    delta_rule,
    delta_rule_flops,
)
from manticore.stacks.short_convolution import ShortConvolution

_RATES = (1e-3, 16.0)
_KIMI_RATES = (1.0, 16.0)
_TIME_STEPS = (1e-3, 1e-1)


class DeltaNet(MatrixState):
    """The delta rule, with or without gates.

    Args:
        width: D.
        num_heads: H.
        kernel_size: of the short convolutions.
        gated: whether the state decays and the output is gated.
    """

    cache_type = "linear_attention"

    def __init__(self, width: int, *, num_heads: int, kernel_size: int, gated: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(width, num_heads)
        self.gated = gated
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.conv = ShortConvolution(3 * width, kernel_size, bias=False)
        self.beta_proj = nn.Linear(width, num_heads, bias=False)
        if gated:
            self.decay_proj = nn.Linear(width, num_heads, bias=False)
            self.decay_bias = nn.Parameter(torch.empty(num_heads))
            self.log_rate = nn.Parameter(torch.empty(num_heads))
            self.gate_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)
        self.out_proj = nn.Linear(width, width, bias=False)

    def _inputs(self, hidden: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v ``[B, H, T, K]`` and beta ``[B, H, T]`` of the rule."""
        dtype = compute_dtype(hidden)
        mixed = step.silence(F.silu(self.conv(step.silence(self.qkv_proj(hidden)), step)))
        q, k, v = (split_heads(x, self.num_heads).to(dtype) for x in mixed.chunk(3, -1))
        q, k = F.normalize(q, dim=-1) * self.head_dim**-0.5, F.normalize(k, dim=-1)
        return q, k, v, self.beta_proj(hidden).to(dtype).sigmoid().mT

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        dtype = compute_dtype(hidden)
        q, k, v, beta = self._inputs(hidden, step)
        log_decay = None
        if self.gated:
            time_step = F.softplus(self.decay_proj(hidden).to(dtype) + self.decay_bias.to(dtype))
            log_decay = -(self.log_rate.to(dtype).exp() * time_step).mT
        out, state = delta_rule(q, k, v, beta, log_decay, step.state)
        step.keep(state)
        out = merge_heads(self.norm(out.to(hidden.dtype)))
        return self.out_proj(out * F.silu(self.gate_proj(hidden)) if self.gated else out)

    def flops(self, tokens: int) -> int:
        return self._map_flops(tokens) + delta_rule_flops(tokens, self.num_heads, self.head_dim, self.head_dim)

    def _map_flops(self, tokens: int) -> int:
        layers = [layer for layer in self.children() if isinstance(layer, nn.Linear | ShortConvolution)]
        return linear_flops(layers, tokens)

    def reset_extra_parameters(self) -> None:
        if self.gated:
            self._reset_decay(*_RATES)

    def _reset_decay(self, least: float, most: float) -> None:
        init.uniform_(self.log_rate, least, most)
        init.copy_(self.log_rate, self.log_rate.log())
        reset_time_step_bias(self.decay_bias, *_TIME_STEPS)


class KimiDeltaAttention(DeltaNet):
    """The delta rule with one decay per key channel, and gates of low rank.

    Args:
        num_heads: H.
        kernel_size: of the short convolutions.
        gate_rank: of the maps to the decays and to the output gate; None is the width of a head.
    """

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        num_heads: Count = 8,
        kernel_size: Count = 4,
        gate_rank: Count | None = None,
    ) -> None:
        super().__init__(width, num_heads=num_heads, kernel_size=kernel_size, gated=False)
        rank = gate_rank or self.head_dim
        self.decay_down = nn.Linear(width, rank, bias=False)
        self.decay_up = nn.Linear(rank, width, bias=False)
        self.decay_bias = nn.Parameter(torch.empty(width))
        self.log_rate = nn.Parameter(torch.empty(num_heads))
        self.gate_down = nn.Linear(width, rank, bias=False)
        self.gate_up = nn.Linear(rank, width)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        dtype = compute_dtype(hidden)
        q, k, v, beta = self._inputs(hidden, step)
        time_step = F.softplus(self.decay_up(self.decay_down(hidden)).to(dtype) + self.decay_bias.to(dtype))
        log_decay = -self.log_rate.to(dtype).exp()[:, None, None] * split_heads(time_step, self.num_heads)
        beta = beta[..., None]
        out, state = channel_delta_rule(q, beta * k, v, -log_decay.exp() * k, log_decay, state=step.state)
        step.keep(state)
        out = merge_heads(self.norm(out.to(hidden.dtype)))
        return self.out_proj(out * self.gate_up(self.gate_down(hidden)).sigmoid())

    def flops(self, tokens: int) -> int:
        return self._map_flops(tokens) + channel_delta_rule_flops(tokens, self.num_heads, self.head_dim, self.head_dim)

    def reset_extra_parameters(self) -> None:
        self._reset_decay(*_KIMI_RATES)


def reset_time_step_bias(bias: Tensor, least: float, most: float) -> None:
    """Biases whose softplus is spread evenly, on a logarithmic scale, between two time steps."""
    fresh = torch.empty_like(bias).uniform_(math.log(least), math.log(most)).exp().clamp_min(1e-4)
    # the inverse of softplus
    init.copy_(bias, fresh + torch.log(-torch.expm1(-fresh)))


def delta_net(width: int, positions: int, *, num_heads: Count = 8, kernel_size: Count = 4) -> DeltaNet:
    """The delta rule without gates.

    Args:
        width: D.
        positions: unused.
        num_heads: H.
        kernel_size: of the short convolutions.
    """
    return DeltaNet(width, num_heads=num_heads, kernel_size=kernel_size, gated=False)


def gated_delta_net(width: int, positions: int, *, num_heads: Count = 8, kernel_size: Count = 4) -> DeltaNet:
    """The delta rule with a decaying state and an output gate.

    Args:
        width: D.
        positions: unused.
        num_heads: H.
        kernel_size: of the short convolutions.
    """
    return DeltaNet(width, num_heads=num_heads, kernel_size=kernel_size, gated=True)
