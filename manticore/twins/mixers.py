"""The mixers of twins: what stands where a parent's softmax attention stood, starting from its maps.

    gated-delta-net     S_t = a_t S_{t-1} + k_t u_t^T,  u_t = b_t (v_t - a_t S_{t-1}^T k_t),  o_t = S_t^T q_t / sqrt(K)
    mamba-2             S_t = a_t S_{t-1} + d_t k_t v_t^T,  o_t = S_t^T q_t + D v_t,  d_t = softplus(W x_t + c)
    linear-attention    S_t = S_{t-1} + f(k_t) v_t^T,  o_t = S_t^T f(q_t) / (f(q_t) . sum_{s<=t} f(k_s))
    sliding-attention   the parent's attention to the current token and those before it in a window

Grouped attention keeps its groups: there is one state per head of keys and values, read by all of its query heads, and
a_t, b_t, d_t are numbers per state. Before the first two recurrences q, k, v pass a short convolution and SiLU, behind
them a norm and an output gate; q and k of the delta rule have length 1. ``f`` is Hedgehog's feature map (Zhang et al.,
2024): softmax(Wx) and softmax(-Wx) side by side, so that a state has 2 K rows. What attention has no counterpart for
starts neutral: convolutions as the identity, gates open, W as the identity.

The recurrences are those of stacks (:mod:`manticore.stacks.recurrences`).

Shapes: B batch, T tokens, D width, H query heads, G heads of keys and values, K head width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from manticore.components.cache_argument import cache_in
from manticore.errors import ManticoreError
from manticore.option_types import TwinMixers, literals
from manticore.stacks.attention import eager_attention
from manticore.stacks.delta import reset_time_step_bias
from manticore.stacks.mixer import Memory, Step, compute_dtype, merge_heads, split_heads
from manticore.stacks.recurrences import delta_rule, scalar_decay
from manticore.stacks.short_convolution import ShortConvolution
from manticore.twins.attention_maps import AttentionMaps, by_heads, hidden_of, rotated

PADDING, WINDOW_MASK = "twin_padding", "twin_window_mask"
"""What layers are called with beside the family's own arguments: ``[B, cached + T]`` or None, a mask or None."""

_KERNEL = 4
_TIME_STEPS = (1e-3, 1e-1)
_RATES = (1.0, 16.0)
_OPEN = 1.278464542761074
"""SiLU of it is 1."""


class TwinMixer(nn.Module):
    """What all mixers share: the parent's maps, norms and rotations, and how they are called.

    Args:
        maps: what was read of the parent's attention; its modules are taken over, not copied.
        config: of the parent, for the implementation of attention.
        rotary: whether queries and keys are rotated by their positions.
        window: tokens that sliding attention sees, the current one included.
    """

    cache_type = "linear_attention"
    """What transformers' cache holds for it."""

    def __init__(self, maps: AttentionMaps, config: Any, *, rotary: bool, window: int | None) -> None:
        super().__init__()
        self.config, self.layer_idx, self.window = config, maps.layer_idx, window
        self.num_heads, self.num_kv_heads, self.head_dim = maps.num_heads, maps.num_kv_heads, maps.head_dim
        self.num_key_value_groups = self.num_heads // self.num_kv_heads
        self.scaling = maps.scaling
        self.rotate = maps.rotate if rotary else None
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = maps.q_proj, maps.k_proj, maps.v_proj, maps.o_proj
        self.q_norm, self.k_norm = maps.q_norm, maps.k_norm
        self.width = self.q_proj.in_features
        self._add(dtype=self.q_proj.weight.dtype, device=self.q_proj.weight.device)
        if not self.q_proj.weight.is_meta:
            self.reset_fresh_parameters()
            for module in self.modules():
                # the family would start it as its own
                module._is_hf_initialized = True  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """``[B, T, D]`` → ``[B, T, D]`` and None, called as the parent's attention is."""
        hidden = hidden_of(args, kwargs)
        cache = cache_in(kwargs) if "layer_past" not in kwargs else kwargs["layer_past"]
        if PADDING not in kwargs:
            raise ManticoreError(
                f"twin: family {self.config.model_type!r} does not hand what mixers need on to its layers. "
                "Fix: another parent"
            )
        padding = kwargs[PADDING]
        if padding is not None:
            padding = padding[:, -hidden.shape[1] :, None].to(hidden.dtype)
        memory = None if cache is None else Memory(cache, self.layer_idx)
        step = Step(padding, kwargs.get(WINDOW_MASK), None, self.config._attn_implementation, memory)
        mixed = self.mix(hidden, step, kwargs.get("position_embeddings"))
        return self.o_proj(merge_heads(mixed.to(hidden.dtype))), None

    @abstractmethod
    def mix(self, hidden: Tensor, step: Step, angles: Any) -> Tensor:
        """``[B, T, D]`` → ``[B, H, T, K]``, what the output map reads.

        Args:
            hidden: what attention was given.
            step: padding, mask and memory.
            angles: cosines and sines of the rotations, None where the parent has none.
        """

    def _add(self, **like: Any) -> None:
        """Make what attention has no counterpart for, in the precision and on the device of its maps."""

    def reset_fresh_parameters(self) -> None:
        """Start what attention has no counterpart for."""

    def _heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, K]``, keys and values ``[B, G, T, K]``, as the parent's attention has them."""
        q = by_heads(self.q_proj(hidden), self.q_norm, self.num_heads)
        k = by_heads(self.k_proj(hidden), self.k_norm, self.num_kv_heads)
        return q, k, split_heads(self.v_proj(hidden), self.num_kv_heads)

    def _convolved(self, hidden: Tensor, step: Step, dtype: torch.dtype) -> list[Tensor]:
        """Queries, keys and values behind a short convolution and SiLU, ``[B, H or G, T, K]``."""
        mapped = torch.cat([merge_heads(each) for each in self._heads(hidden)], -1)
        mapped = step.silence(F.silu(self.conv(step.silence(mapped), step))).to(dtype)
        widths = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        return [
            split_heads(part, heads)
            for part, heads in zip(mapped.split([heads * self.head_dim for heads in widths], -1), widths)
        ]

    def _add_convolution(self, **like: Any) -> None:
        channels = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.conv = ShortConvolution(channels, _KERNEL, bias=False, **like)

    def _reset_convolution(self) -> None:
        init.zeros_(self.conv.weight)
        with torch.no_grad():
            self.conv.weight[..., -1] = 1.0

    def _add_gate(self, **like: Any) -> None:
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5, **like)
        self.gate_proj = nn.Linear(self.width, self.num_heads * self.head_dim, **like)

    def _reset_gate(self) -> None:
        init.zeros_(self.gate_proj.weight)
        init.constant_(self.gate_proj.bias, _OPEN)

    def _gated(self, out: Tensor, hidden: Tensor) -> Tensor:
        """Norm and gate of ``[B, H, T, K]``."""
        gate = split_heads(F.silu(self.gate_proj(hidden)), self.num_heads)
        return self.norm(out.to(hidden.dtype)) * gate


class GatedDeltaNet(TwinMixer):
    """The gated delta rule (Yang, Kautz & Hatamizadeh, 2024)."""

    def _add(self, **like: Any) -> None:
        self._add_convolution(**like)
        self._add_gate(**like)
        self.beta_proj = nn.Linear(self.width, self.num_kv_heads, bias=False, **like)
        self.decay_proj = nn.Linear(self.width, self.num_kv_heads, bias=False, **like)
        self.decay_bias = nn.Parameter(torch.empty(self.num_kv_heads, **like))
        self.log_rate = nn.Parameter(torch.empty(self.num_kv_heads, **like))

    def reset_fresh_parameters(self) -> None:
        self._reset_convolution()
        self._reset_gate()
        for layer in (self.beta_proj, self.decay_proj):
            init.normal_(layer.weight, std=0.02)
        init.uniform_(self.log_rate, *_RATES)
        init.copy_(self.log_rate, self.log_rate.log())
        reset_time_step_bias(self.decay_bias, *_TIME_STEPS)

    def mix(self, hidden: Tensor, step: Step, angles: Any) -> Tensor:
        dtype = compute_dtype(hidden)
        q, k, v = self._convolved(hidden, step, dtype)
        q, k = rotated(self.rotate, F.normalize(q, dim=-1), F.normalize(k, dim=-1), angles)
        beta = self.beta_proj(hidden).to(dtype).sigmoid().mT
        time_step = F.softplus(self.decay_proj(hidden).to(dtype) + self.decay_bias.to(dtype))
        log_decay = -(self.log_rate.to(dtype).exp() * time_step).mT
        out, state = delta_rule(q.to(dtype) * self.head_dim**-0.5, k.to(dtype), v, beta, log_decay, step.state)
        step.keep(state)
        return self._gated(out, hidden)


class Mamba2(TwinMixer):
    """The state space of Mamba-2 (Dao & Gu, 2024), with C, B and x where attention has queries, keys and values."""

    def _add(self, **like: Any) -> None:
        self._add_convolution(**like)
        self._add_gate(**like)
        self.dt_proj = nn.Linear(self.width, self.num_kv_heads, bias=False, **like)
        self.dt_bias = nn.Parameter(torch.empty(self.num_kv_heads, **like))
        self.A_log = nn.Parameter(torch.empty(self.num_kv_heads, **like))
        self.D = nn.Parameter(torch.empty(self.num_kv_heads, **like))

    def reset_fresh_parameters(self) -> None:
        self._reset_convolution()
        self._reset_gate()
        init.normal_(self.dt_proj.weight, std=0.02)
        reset_time_step_bias(self.dt_bias, *_TIME_STEPS)
        init.uniform_(self.A_log, *_RATES)
        init.copy_(self.A_log, self.A_log.log())
        init.ones_(self.D)

    def mix(self, hidden: Tensor, step: Step, angles: Any) -> Tensor:
        dtype = compute_dtype(hidden)
        q, k, v = self._convolved(hidden, step, dtype)
        q, k = rotated(self.rotate, q, k, angles)
        time_step = F.softplus(self.dt_proj(hidden).to(dtype) + self.dt_bias.to(dtype)).mT
        log_decay = -self.A_log.to(dtype).exp()[:, None] * time_step
        out, state = scalar_decay(
            q.to(dtype) * self.head_dim**-0.5, k.to(dtype), v * time_step[..., None], log_decay, step.state
        )
        step.keep(state)
        past = (self.D.to(dtype)[:, None, None] * v).repeat_interleave(self.num_key_value_groups, 1)
        return self._gated(out + past, hidden)


class HedgehogAttention(TwinMixer):
    """Linear attention with Hedgehog's learned feature maps, normalised as a softmax is."""

    def _add(self, **like: Any) -> None:
        self.q_features = nn.Linear(self.head_dim, self.head_dim, bias=False, **like)
        self.k_features = nn.Linear(self.head_dim, self.head_dim, bias=False, **like)

    def reset_fresh_parameters(self) -> None:
        for layer in (self.q_features, self.k_features):
            init.copy_(layer.weight, torch.eye(self.head_dim))

    def _features(self, q: Tensor, k: Tensor) -> tuple[tuple[nn.Linear, Tensor], ...]:
        return (self.q_features, q), (self.k_features, k)

    def mix(self, hidden: Tensor, step: Step, angles: Any) -> Tensor:
        dtype = compute_dtype(hidden)
        q, k, v = self._heads(hidden)
        q, k = rotated(self.rotate, q, k, angles)
        # so that at first the products of what is inside the exponents are those of attention
        q, k = (_hedgehog(features(x) * self.scaling**0.5) for features, x in self._features(q, k))
        if step.padding is not None:
            k = k * step.padding[:, None]
        v = v.to(dtype)
        # one more value channel that is always 1 sums the keys for the normaliser
        out, state = scalar_decay(q, k, torch.cat([v, torch.ones_like(v[..., :1])], -1), state=step.state)
        step.keep(state)
        # a query behind padding alone has read nothing
        return out[..., :-1] / out[..., -1:].clamp_min(torch.finfo(dtype).tiny)


class SlidingAttention(TwinMixer):
    """The parent's attention in a window."""

    cache_type = "sliding_attention"
    is_causal = True

    def mix(self, hidden: Tensor, step: Step, angles: Any) -> Tensor:
        q, k, v = self._heads(hidden)
        q, k = rotated(self.rotate, q, k, angles)
        if step.memory is not None:
            k, v = step.memory.extend(k, v)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(step.attention, eager_attention)
        out: Tensor = attend(self, q, k, v, step.mask, dropout=0.0, scaling=self.scaling, sliding_window=self.window)[0]
        return out.transpose(1, 2)


MIXERS: dict[str, type[TwinMixer]] = dict(
    zip(literals(TwinMixers), (GatedDeltaNet, Mamba2, HedgehogAttention, SlidingAttention))
)
"""Name → class."""


def _hedgehog(x: Tensor) -> Tensor:
    """``[…, K]`` → ``[…, 2 K]``, positive."""
    dtype = compute_dtype(x)
    return torch.cat([x.softmax(-1, dtype=dtype), (-x).softmax(-1, dtype=dtype)], -1)
