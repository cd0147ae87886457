"""Softmax attention: one head or many, grouped keys, sliding windows; positions by rotation.

    o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s

Rotary embeddings turn channel i and i + K/2 of queries and keys by position * base^(-2i/K) (Su et al., 2021).

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from manticore.errors import ManticoreError
from manticore.making import sharing
from manticore.option_types import Count, Positive
from manticore.stacks.mixer import Mixer, Step, head_width, linear_flops, split_heads


class Attention(Mixer):
    """Causal softmax attention.

    Args:
        width: D.
        num_heads: H, of the queries.
        num_kv_heads: heads of keys and values; each serves H / num_kv_heads query heads.
        window: tokens before the current one that are seen; None is all of them.
        rotary: whether queries and keys are rotated by their positions.
        rotary_base: the slowest rotation's wavelength is about this many tokens times 2 pi.
        bias: of all projections.
    """

    cache_type = "full_attention"
    family = "softmax attention"
    feature_groups = (("keys", "values"),)
    hands_on = ("keys", "values")
    is_causal = True

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        window: int | None,
        rotary: bool,
        rotary_base: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.head_dim = head_width(width, num_heads)
        if num_heads % num_kv_heads:
            raise ManticoreError(f"{num_kv_heads} key heads do not divide {num_heads} heads. Fix: a divisor")
        if rotary and self.head_dim % 2:
            raise ManticoreError(
                f"heads of odd width {self.head_dim} cannot be rotated. Fix: an even one, or rotary=False"
            )
        self.num_heads, self.num_kv_heads, self.window = num_heads, num_kv_heads, window
        self.num_key_value_groups = num_heads // num_kv_heads
        self.rotary_base = rotary_base if rotary else None
        kv_width = num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        positions = step.positions
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        q, *own = self._projected(hidden, step)
        q = self._placed(q, self.num_heads, positions)
        if step.taken:
            k, v = (cast(Tensor, step.taken[name]) for name in self.hands_on)
        else:
            k, v = self._placed(own[0], self.num_kv_heads, positions), split_heads(own[1], self.num_kv_heads)
            if step.memory is not None:
                k, v = step.memory.extend(k, v)
        step.hand_on(keys=k, values=v)
        return self.out_proj(self._attended(q, k, v, step).flatten(2))

    def _projected(self, hidden: Tensor, step: Step) -> tuple[Tensor, ...]:
        """Queries, and keys and values unless those of a lower layer are taken: ``[B, T, H * K]`` each."""
        maps = (self.q_proj,) if step.taken else (self.q_proj, self.k_proj, self.v_proj)
        return tuple(project(hidden) for project in maps)

    def _placed(self, x: Tensor, heads: int, positions: Tensor) -> Tensor:
        """``[B, T, H * K]`` → ``[B, H, T, K]``, rotated by the positions."""
        x = split_heads(x, heads)
        return x if self.rotary_base is None else rotate(x, positions, self.rotary_base)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """``[B, H, T, K]``, twice ``[B, H / groups, S, K]`` → ``[B, T, H, K]``."""
        if k.shape[1] * self.num_key_value_groups != self.num_heads:
            # those of a lower layer that has other groups, or this layer's own after them
            self.num_key_value_groups = self.num_heads // k.shape[1]
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(step.attention, eager_attention)
        window = None if self.window is None else self.window + 1
        out: Tensor = attend(self, q, k, v, step.mask, dropout=0.0, scaling=self.head_dim**-0.5, sliding_window=window)[
            0
        ]
        return out

    def _leave_out(self) -> None:
        del self.k_proj, self.v_proj

    def mismatch(self, source: Mixer) -> str | None:
        if self.family != source.family:
            return super().mismatch(source)
        assert isinstance(source, Attention)
        if self.head_dim != source.head_dim:
            return f"its heads have width {source.head_dim} (expected {self.head_dim})"
        if self.num_heads % source.num_kv_heads:
            return f"its {source.num_kv_heads} key heads do not divide {self.num_heads} heads"
        if (self.window, self.rotary_base) != (source.window, source.rotary_base):
            return "its window or rotations are others"
        return None

    def state_size(self, tokens: int) -> int:
        seen = tokens if self.window is None else min(tokens, self.window + 1)
        return 0 if self.taken else 2 * self.num_kv_heads * self.head_dim * seen

    def flops(self, tokens: int) -> int:
        projections = [self.q_proj, self.out_proj, *(() if self.taken else (self.k_proj, self.v_proj))]
        return linear_flops(projections, tokens) + 4 * tokens * tokens * self.num_heads * self.head_dim


class SlidingAttention(Attention):
    """Attention whose keys and values leave the cache when no window holds them any more."""

    cache_type = "sliding_attention"


def _common(*, rotary: bool = True, rotary_base: Positive = 10000.0, bias: bool = True) -> None:
    """What all five take.

    Args:
        rotary: whether positions are rotated in; without, the layer knows no order.
        rotary_base: of the rotations' wavelengths.
        bias: of all projections.
    """


@sharing(_common)
def attention(width: int, positions: int, *, num_heads: Count = 1, **common: Any) -> Attention:
    """Softmax attention with one head.

    Args:
        width: D.
        positions: unused: rotations have no last position.
        num_heads: H.
    """
    return Attention(width, num_heads=num_heads, num_kv_heads=num_heads, window=None, **common)


@sharing(_common)
def mh_attention(width: int, positions: int, *, num_heads: Count = 16, **common: Any) -> Attention:
    """Softmax attention with many heads.

    Args:
        width: D.
        positions: unused: rotations have no last position.
        num_heads: H.
    """
    return attention(width, positions, num_heads=num_heads, **common)


@sharing(_common)
def grouped_query_attention(
    width: int, positions: int, *, num_heads: Count = 16, num_kv_heads: Count = 4, **common: Any
) -> Attention:
    """Attention whose query heads share keys and values in groups (Ainslie et al., 2023).

    Args:
        width: D.
        positions: unused: rotations have no last position.
        num_heads: H.
        num_kv_heads: heads of keys and values.
    """
    return Attention(width, num_heads=num_heads, num_kv_heads=num_kv_heads, window=None, **common)


@sharing(_common)
def sliding_attention(
    width: int, positions: int, *, num_heads: Count = 1, window: Count = 32, **common: Any
) -> SlidingAttention:
    """Attention to the current token and a window before it, with one head.

    Args:
        width: D.
        positions: unused: rotations have no last position.
        num_heads: H.
        window: tokens before the current one that are seen; the same for all sliding layers of a stack.
    """
    return SlidingAttention(width, num_heads=num_heads, num_kv_heads=num_heads, window=window, **common)


@sharing(_common)
def mh_sliding_attention(
    width: int, positions: int, *, num_heads: Count = 16, window: Count = 32, **common: Any
) -> SlidingAttention:
    """Attention to the current token and a window before it, with many heads.

    Args:
        width: D.
        positions: unused: rotations have no last position.
        num_heads: H.
        window: tokens before the current one that are seen; the same for all sliding layers of a stack.
    """
    return sliding_attention(width, positions, num_heads=num_heads, window=window, **common)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary embedding of ``[B, H, T, K]`` at ``positions`` ``[B or 1, T]``; angles in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = (positions.to(dtype)[..., None] * frequencies)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def eager_attention(
    module: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attention written out, in the signature of transformers' implementations.

    Args:
        module: the layer.
        q: ``[B, H, T, K]``.
        k: ``[B, H / groups, S, K]``.
        v: ``[B, H / groups, S, K]``.
        mask: added to the scores, ``[B, 1, T, S]``.
        scaling: of the scores.
        options: of other implementations.

    Returns:
        ``[B, T, H, K]`` and the weights ``[B, H, T, S]``.
    """
    k, v = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (k, v))
    scores = q @ k.mT * scaling
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return (weights @ v).transpose(1, 2).contiguous(), weights
