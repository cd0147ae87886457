"""Low-rank operators: T_ij = f(C_i . B_j) for j <= i, dense over tokens, of attention and its kin.

    softmax     o_i = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j
    pointwise   o_i = sum_j f(q_i . k_j / sqrt(K)) v_j              f = identity, ReLU or swish; not normalised
    linear      the same with f = identity and no band, as a state S_i = S_{i-1} + k_i v_i^T

The featurizer may put a short depthwise convolution on queries, keys and values, and repeat keys and values. A band
lets a token see itself and ``window`` tokens before it.

Shapes: B batch, T tokens, S tokens held, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.errors import ManticoreError
from manticore.stacks.attention import Attention
from manticore.stacks.mixer import Mixer, Step, compute_dtype, head_width, linear_flops, merge_heads, split_heads
from manticore.stacks.recurrences import scalar_decay, scalar_decay_flops
from manticore.stacks.short_convolution import ShortConvolution

NONLINEARITIES: dict[int, tuple[str, Callable[[Tensor], Tensor]]] = {
    1: ("linear", lambda x: x),
    3: ("ReLU", F.relu),
    4: ("swish", F.silu),
}
"""Digit of a code → name and function; 2 is the softmax."""

_LEAST_HEADS = 4
_WIDEST_HEAD = 64


def default_heads(width: int) -> int:
    """Heads for a width: of 64 channels, and at least 4, as far as the width allows it.

    A multiple of 4 where that can be, so that keys of all featurizers fit each other; heads of even width.
    """
    most = max(_LEAST_HEADS, width // _WIDEST_HEAD)
    whole = [heads for heads in range(most, 0, -1) if width % (2 * heads) == 0]
    return next((heads for heads in whole if heads % _LEAST_HEADS == 0), whole[0] if whole else 1)


def key_heads(num_heads: int, repeat: int) -> int:
    """Heads of keys and values that are repeated.

    Raises:
        ManticoreError: they do not come out whole.
    """
    if num_heads % repeat:
        raise ManticoreError(
            f"keys and values repeated {repeat} times do not fill {num_heads} heads. "
            f"Fix: num_heads that is a multiple of {repeat}"
        )
    return num_heads // repeat


class SoftmaxOperator(Attention):
    """Softmax attention without biases, with a short convolution or without.

    Args:
        width: D.
        num_heads: H.
        repeat: how often keys and values are used.
        window: tokens before the current one that are seen; None is all of them.
        kernel_size: of the convolution on queries, keys and values; None is none.
        rotary: whether queries and keys are rotated by their positions.
        rotary_base: of the rotations' wavelengths.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        repeat: int = 1,
        window: int | None = None,
        kernel_size: int | None = None,
        rotary: bool = True,
        rotary_base: float = 10000.0,
    ) -> None:
        super().__init__(
            width,
            num_heads=num_heads,
            num_kv_heads=key_heads(num_heads, repeat),
            window=window,
            rotary=rotary,
            rotary_base=rotary_base,
            bias=False,
        )
        self.conv: ShortConvolution | None = None
        if kernel_size is not None:
            channels = width + 2 * self.num_kv_heads * self.head_dim
            self.conv = ShortConvolution(channels, kernel_size, bias=False)
        kinds = ("full_attention", "hybrid") if window is None else ("sliding_attention", "hybrid_sliding")
        self.cache_type = kinds[kernel_size is not None]

    @property
    def mask_type(self) -> str | None:
        return "full_attention" if self.window is None else "sliding_attention"

    def _projected(self, hidden: Tensor, step: Step) -> tuple[Tensor, ...]:
        return super()._projected(hidden, step) if self.conv is None else _convolved(self, self.conv, hidden, step)

    def _leave_out(self) -> None:
        super()._leave_out()
        if self.conv is not None:
            width = self.num_heads * self.head_dim
            self.conv = ShortConvolution(width, self.conv.kernel_size[0], bias=False)

    @property
    def cache_slot(self) -> str:
        return super().cache_slot if self.conv is None or not self.taken else "conv"

    def flops(self, tokens: int) -> int:
        if self.conv is None:
            return super().flops(tokens)
        # with a convolution all maps that are there run, as it goes over them together
        layers = [layer for layer in self.children() if isinstance(layer, nn.Linear | ShortConvolution)]
        return linear_flops(layers, tokens) + 4 * tokens * tokens * self.num_heads * self.head_dim


class PointwiseOperator(SoftmaxOperator):
    """The same with a function of single scores in place of the softmax.

    Args:
        width: D.
        nonlinearity: 1 none, 3 ReLU, 4 swish.
        options: of :class:`SoftmaxOperator`.
    """

    def __init__(self, width: int, *, nonlinearity: int, **options: object) -> None:
        super().__init__(width, **options)  # type: ignore[arg-type]
        name, self.function = NONLINEARITIES[nonlinearity]
        self.family = f"{name} attention"

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if step.attention not in ("eager", "sdpa"):
            raise ManticoreError(
                f"stack: attention without a softmax cannot be computed by {step.attention!r}. "
                "Fix: attn_implementation='sdpa'"
            )
        k, v = (x.repeat_interleave(self.num_heads // x.shape[1], 1) for x in (k, v))
        scores = self.function(q @ k.mT * self.head_dim**-0.5)
        weights = scores.masked_fill(~_visible(step.mask, q.shape[2], k.shape[2], q.device), 0)
        return (weights @ v).transpose(1, 2)


class LinearOperator(Mixer):
    """Attention without a softmax or a band, as a state; no rotations, so that a convolution alone gives it order.

    Args:
        width: D.
        num_heads: H.
        repeat: how often keys and values are used.
        kernel_size: of the convolution on queries, keys and values; None is none.
    """

    cache_type = "linear_attention"
    fixed_state = True
    feature_groups = (("keys", "values"),)
    hands_on = ("keys", "values", "state")

    def __init__(self, width: int, *, num_heads: int, repeat: int = 1, kernel_size: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(width, num_heads)
        self.num_kv_heads = key_heads(num_heads, repeat)
        self.family = f"linear attention with {self.num_kv_heads} key heads of {self.head_dim}"
        kv_width = self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.conv: ShortConvolution | None = None
        if kernel_size is not None:
            self.conv = ShortConvolution(width + 2 * kv_width, kernel_size, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        dtype, taken = compute_dtype(hidden), step.taken
        if self.conv is not None:
            q, *own = _convolved(self, self.conv, hidden, step)
        else:
            q, own = self.q_proj(hidden), [] if taken else [self.k_proj(hidden), self.v_proj(hidden)]
        q = split_heads(q, self.num_heads).to(dtype)
        if taken:
            k, v, state = cast(Tensor, taken["keys"]), cast(Tensor, taken["values"]), taken["state"]
        else:
            k = split_heads(step.silence(own[0]), self.num_kv_heads).to(dtype)
            v, state = split_heads(own[1], self.num_kv_heads).to(dtype), step.state
        if step.handed is not None:
            # the cache writes the next state over this one
            step.hand_on(keys=k, values=v, state=None if state is None else state.clone())
        groups = self.num_heads // self.num_kv_heads
        wide = [None if x is None else x.repeat_interleave(groups, 1) for x in (k, v, state)]
        out, state = scalar_decay(q * self.head_dim**-0.5, cast(Tensor, wide[0]), cast(Tensor, wide[1]), state=wide[2])
        if not taken:
            step.keep(state[:, ::groups])
        return self.out_proj(merge_heads(out).to(hidden.dtype))

    def _leave_out(self) -> None:
        del self.k_proj, self.v_proj
        if self.conv is not None:
            self.conv = ShortConvolution(self.num_heads * self.head_dim, self.conv.kernel_size[0], bias=False)

    @property
    def cache_slot(self) -> str:
        return super().cache_slot if self.conv is None or not self.taken else "conv"

    def state_size(self, tokens: int) -> int:
        return 0 if self.taken else self.num_kv_heads * self.head_dim**2

    def option_for_state(self, elements: int) -> tuple[str, int]:
        width, repeat = self.num_heads * self.head_dim, self.num_heads // self.num_kv_heads
        return "num_heads", width**2 // (elements * repeat)

    def flops(self, tokens: int) -> int:
        layers = [layer for layer in self.children() if isinstance(layer, nn.Linear | ShortConvolution)]
        if self.taken and self.conv is None:
            layers = [self.q_proj, self.out_proj]
        return linear_flops(layers, tokens) + scalar_decay_flops(tokens, self.num_heads, self.head_dim, self.head_dim)


def _convolved(
    mixer: SoftmaxOperator | LinearOperator, conv: ShortConvolution, hidden: Tensor, step: Step
) -> tuple[Tensor, ...]:
    """Queries, and keys and values where there are maps for them, each channel convolved."""
    maps = [getattr(mixer, name) for name in ("q_proj", "k_proj", "v_proj") if hasattr(mixer, name)]
    parts = [layer(hidden) for layer in maps]
    joined: Tensor = conv(step.silence(torch.cat(parts, -1)), step)
    return joined.split([part.shape[-1] for part in parts], -1)


def _visible(mask: Tensor | None, tokens: int, held: int, device: torch.device) -> Tensor:
    """``[…, T, S]``, True where a token sees a held one, from the mask in the form of eager attention or SDPA."""
    if mask is None:
        return torch.ones(tokens, held, dtype=torch.bool, device=device).tril(held - tokens)
    return mask if mask.dtype == torch.bool else mask == 0
