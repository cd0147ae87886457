"""Short causal convolutions along the sequence, one filter per channel, and the primitive made of one.

    y_t = sum_{j < k} w_j x_{t-j} (+ b)

The short gated convolution is the mixer of LFM2 (Liquid AI, 2025): ``C * conv(B * x)`` with B, C, x projections.

Shapes: B batch, T tokens, D width, C channels, k kernel size.
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from manticore.option_types import Count
from manticore.stacks.mixer import Mixer, Step, linear_flops


class ShortConvolution(nn.Conv1d):
    """A causal convolution that continues where a memory ends, depthwise unless there are fewer groups.

    Args:
        channels: C.
        kernel_size: k.
        bias: of each channel.
        groups: fewer of them mix channels.
        like: ``dtype`` and ``device`` of its weights.
    """

    def __init__(self, channels: int, kernel_size: int, *, bias: bool, groups: int | None = None, **like: Any) -> None:
        super().__init__(channels, channels, kernel_size, groups=groups or channels, bias=bias, **like)

    def forward(self, x: Tensor, step: Step) -> Tensor:  # type: ignore[override]
        """``[B, T, C]`` → ``[B, T, C]``."""
        return self.applied(self.with_past(x, step))

    def with_past(self, x: Tensor, step: Step) -> Tensor:
        """``[B, T, C]`` → ``[B, C, k - 1 + T]``: behind the inputs before them."""
        return step.window(x.mT, self.kernel_size[0] - 1)

    def applied(self, inputs: Tensor) -> Tensor:
        """``[B, C, k - 1 + T]`` → ``[B, T, C]``."""
        return F.conv1d(inputs, self.weight, self.bias, groups=self.groups).mT


class ShortGatedConvolution(Mixer):
    """``out(c * conv(b * x))`` with b, c and x projections of the input.

    Args:
        kernel_size: tokens that a filter reaches over.
        bias: of projections and filters.
    """

    cache_type = "conv"
    fixed_state = True
    feature_groups = (("B", "V"), ("B", "V", "kernel"))
    # B * V with what came before it, and its convolution
    hands_on = ("V", "kernel")

    def __init__(self, width: int, positions: int, *, kernel_size: Count = 3, bias: bool = False) -> None:
        super().__init__()
        self.family = f"a gated convolution over {kernel_size}"
        self.width, self.kernel_size = width, kernel_size
        self.in_proj = nn.Linear(width, 3 * width, bias=bias)
        self.conv = ShortConvolution(width, kernel_size, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        b, c, x = self._projected(hidden)
        inputs = step.taken["V"] if "V" in step.taken else self.conv.with_past(step.silence(b * x), step)
        convolved = step.taken["kernel"] if "kernel" in step.taken else self.conv.applied(cast(Tensor, inputs))
        step.hand_on(V=inputs, kernel=convolved)
        return self.out_proj(self._gate(c) * cast(Tensor, convolved))

    def _projected(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B, C and V; all the same where B and V are taken from below and have no weights here."""
        projected = self.in_proj(hidden)
        b, c, x = projected.chunk(3, -1) if self.in_proj.out_features > self.width else (projected,) * 3
        return b, c, x

    def _gate(self, c: Tensor) -> Tensor:
        """What C becomes before it gates."""
        return c

    def _leave_out(self) -> None:
        self.in_proj = nn.Linear(self.width, self.width, bias=self.in_proj.bias is not None)
        if "kernel" in self.taken:
            del self.conv

    @property
    def cache_slot(self) -> str:
        # the window that it takes is held below
        return "moe" if self.taken else self.cache_type

    def state_size(self, tokens: int) -> int:
        # here the filter's inputs are all the state there is
        return 0 if self.taken else self.width * (self.kernel_size - 1)

    def option_for_state(self, elements: int) -> tuple[str, int]:
        return "kernel_size", elements // self.width + 1

    def flops(self, tokens: int) -> int:
        convolved = () if "kernel" in self.taken else (self.conv,)
        return linear_flops((self.in_proj, *convolved, self.out_proj), tokens)
