"""RWKV-7: a state that decays by channel and of which a part is rewritten at every token, and its channel mixer.

    S_t = diag(w_t) S_{t-1} + k_t v_t^T - (n_t * a_t) (S_{t-1}^T n_t)^T
    time mixer       out((norm(S_t^T r_t) + (sum r_t * u * k_t) v_t) * g_t)
    channel mixer    W_v relu(W_k x_t)^2

Every input is a mix of the token and the one before it. n_t is the key scaled by channel and to length 1: what the
state holds along it is taken out at the rate a_t, between 0 and 1 in every channel. w_t = exp(-e^{-1/2} sigmoid(…)),
a_t and g_t come from the input through maps of low rank. Layers above the first of a model draw their values towards
the first one's (Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", 2025).

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from manticore.option_types import Count
from manticore.stacks.mixer import (
    MatrixState,
    Mixer,
    Step,
    compute_dtype,
    head_width,
    linear_flops,
    merge_heads,
    split_heads,
)
from manticore.stacks.recurrences import channel_delta_rule, channel_delta_rule_flops
from manticore.stacks.rwkv import ramp, token_before

# powers of a ramp over the channels that the mixes start from, per input
_MIXES = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
_LARGEST_RATE = math.exp(-0.5)
_NORM_EPS = 1e-5
"""Of a head's variance, per channel of it."""


class LowRankMap(nn.Module):
    """``between(x @ down) @ up``, and a bias where there is one: ``[B, T, D]`` → ``[B, T, D]``.

    Args:
        width: D.
        rank: columns of the map down.
        between: a function of what it gives; None is none.
        bias: whether there is one.
    """

    # as in the released training code, where square maps alone decay
    _no_weight_decay: ClassVar[bool] = True

    def __init__(
        self, width: int, rank: int, between: Callable[[Tensor], Tensor] | None = None, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, rank))
        self.up = nn.Parameter(torch.empty(rank, width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self._between = between

    def forward(self, x: Tensor) -> Tensor:
        low = x @ self.down
        out = (low if self._between is None else self._between(low)) @ self.up
        return out if self.bias is None else out + self.bias

    def flops(self, tokens: int) -> int:
        """FLOPs of both products."""
        return 2 * tokens * (self.down.numel() + self.up.numel())

    def reset(self, bias: Tensor | None = None) -> None:
        """It starts as its bias alone: the map down is zero, the map up orthogonal and small."""
        init.zeros_(self.down)
        # half precision has no decomposition to make it orthogonal by
        start = torch.empty_like(self.up, dtype=torch.float32)
        nn.init.orthogonal_(start, gain=0.1 * max(1.0, (self.up.shape[0] / self.up.shape[1]) ** 0.5))
        init.copy_(self.up, start.to(self.up.dtype))
        if self.bias is not None and bias is not None:
            init.copy_(self.bias, bias.to(self.bias.dtype))


class RWKV7TimeMixer(MatrixState):
    """The time mixer of RWKV-7.

    With ``features=["values"]`` of a lower time mixer it draws its values towards that one's, as all but the first
    layer of an RWKV-7 do; without, it is the first layer's.

    Args:
        num_heads: H.
        decay_rank: of the map to the decays; None is 2.5 sqrt(D), times K / 64, in steps of 32.
        rate_rank: of the map to the rates a; None is the same.
        value_rank: of the map to the shares of the lower layer's values; None is 1.7 sqrt(D), likewise.
        gate_rank: of the map to the output gate; None is 5 sqrt(D), in steps of 32.
    """

    cache_type = "linear_attention"
    family = "an RWKV-7 time mixer"
    feature_groups = (("values",),)
    hands_on = ("values",)
    taking_adds_weights = True
    _no_weight_decay: ClassVar[frozenset[str]] = frozenset(("mixes", "bonus"))

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        num_heads: Count = 8,
        decay_rank: Count | None = None,
        rate_rank: Count | None = None,
        value_rank: Count | None = None,
        gate_rank: Count | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(width, num_heads)
        share = self.head_dim / 64
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(num_heads, width, eps=_NORM_EPS * self.head_dim)
        self.mixes = nn.Parameter(torch.empty(len(_MIXES), width))
        self.decay = LowRankMap(width, decay_rank or _rank(2.5 * share, width), torch.tanh)
        self.rate = LowRankMap(width, rate_rank or _rank(2.5 * share, width))
        self.gate = LowRankMap(width, gate_rank or _rank(5, width), torch.sigmoid, bias=False)
        self.value_share: LowRankMap | None = None
        self._value_rank = value_rank or _rank(1.7 * share, width)
        self.removal_scale = nn.Parameter(torch.empty(width))
        self.rate_scale = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(num_heads, self.head_dim))

    def take(self, features: tuple[str, ...], *, whole: bool = False) -> None:
        super().take(features, whole=whole)
        self.value_share = LowRankMap(self.out_proj.out_features, self._value_rank)

    @property
    def cache_slot(self) -> str:
        return self.cache_type

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        hidden = step.silence(hidden)
        change = token_before(hidden, step) - hidden
        inputs = {name: hidden + change * mix for name, mix in zip(_MIXES, self.mixes, strict=True)}
        dtype = compute_dtype(hidden)
        value = self.value(inputs["v"])
        first = step.taken.get("values")
        if self.value_share is not None:
            first = cast(Tensor, first)
            value = torch.lerp(value, first, self.value_share(inputs["v"]).sigmoid())
        step.hand_on(values=value if first is None else first)
        key = step.silence(self.key(inputs["k"]))
        rate = self.rate(inputs["a"]).to(dtype).sigmoid()
        log_decay = -_LARGEST_RATE * self.decay(inputs["w"]).to(dtype).sigmoid()
        removal, key = key * self.removal_scale, key.to(dtype) * (1 + (rate - 1) * self.rate_scale.to(dtype))
        r, k, v, n, a, log_decay = (
            split_heads(x.to(dtype), self.num_heads)
            for x in (self.receptance(inputs["r"]), key, value, removal, rate, log_decay)
        )
        n = F.normalize(n, dim=-1)
        out, state = channel_delta_rule(r, k, v, -n, log_decay, n * a, step.state)
        step.keep(state)
        # GroupNorm takes channels second; every token is a sample of its own
        flat = merge_heads(out).to(hidden.dtype)
        normed = self.norm(flat.flatten(0, 1)).view_as(flat)
        own = (r * self.bonus.to(dtype)[:, None] * k).sum(-1, keepdim=True) * v
        return self.out_proj((normed + merge_heads(own).to(hidden.dtype)) * self.gate(inputs["g"]))

    def flops(self, tokens: int) -> int:
        maps = [each for each in (self.decay, self.rate, self.gate, self.value_share) if each is not None]
        linear = linear_flops((self.receptance, self.key, self.value, self.out_proj), tokens)
        rule = channel_delta_rule_flops(tokens, self.num_heads, self.head_dim, self.head_dim, two_writers=True)
        return linear + sum(each.flops(tokens) for each in maps) + rule

    def reset_extra_parameters(self) -> None:
        width = len(self.rate_scale)
        share = ramp(width, self.rate_scale)
        start = torch.stack([1 - share**power for power in _MIXES.values()])
        init.copy_(self.mixes, start.to(self.mixes.dtype))
        place = torch.arange(width, dtype=torch.float32, device=self.mixes.device)
        slope = place / max(1, width - 1)
        centred = slope - 0.5
        inside = 2 * (place % self.head_dim) / max(1, self.head_dim - 1) - 1
        zigzag = inside * inside.abs()
        self.decay.reset(-5.5 + 6 * slope + 2.5 * zigzag)
        self.rate.reset(-0.19 + 0.3 * zigzag + 0.4 * centred)
        self.gate.reset()
        if self.value_share is not None:
            self.value_share.reset(0.73 - 0.4 * centred)
        init.copy_(self.removal_scale, (0.71 - 0.1 * centred).to(self.removal_scale.dtype))
        init.constant_(self.rate_scale, 1.02)
        init.constant_(self.bonus, -0.04)


class RWKV7ChannelMixer(Mixer):
    """The channel mixer of RWKV-7, which has no receptance gate.

    Args:
        inner_width: hidden units; None is 4 D.
    """

    cache_type = "conv"

    def __init__(self, width: int, positions: int, *, inner_width: Count | None = None) -> None:
        super().__init__()
        self.key_mix = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, inner_width or 4 * width, bias=False)
        self.value = nn.Linear(inner_width or 4 * width, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        hidden = step.silence(hidden)
        change = token_before(hidden, step) - hidden
        return self.value(F.relu(self.key(hidden + change * self.key_mix)).square())

    def flops(self, tokens: int) -> int:
        return linear_flops((self.key, self.value), tokens)

    def reset_extra_parameters(self) -> None:
        init.copy_(self.key_mix, (1 - ramp(len(self.key_mix), self.key_mix)).to(self.key_mix.dtype))


def _rank(factor: float, width: int) -> int:
    """``factor * sqrt(width)`` in steps of 32, at least one."""
    return max(32, 32 * round(factor * width**0.5 / 32))
