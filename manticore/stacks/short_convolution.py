"""Short causal convolutions along the sequence, one filter per channel, and the primitive made of one.

    y_t = sum_{j < k} w_j x_{t-j} (+ b)

The short gated convolution is the mixer of LFM2 (Liquid AI, 2025): ``C * conv(B * x)`` with B, C, x projections.

Shapes: B batch, T tokens, D width, C channels, k kernel size.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from manticore.option_types import Count
from manticore.stacks.mixer import Mixer, Step, linear_flops


class ShortConvolution(nn.Conv1d):
    """A depthwise causal convolution that continues where a memory ends."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels, bias=bias)

    def forward(self, x: Tensor, step: Step) -> Tensor:  # type: ignore[override]
        """``[B, T, C]`` → ``[B, T, C]``."""
        inputs = step.window(x.mT, self.kernel_size[0] - 1)
        return F.conv1d(inputs, self.weight, self.bias, groups=self.groups).mT


class ShortGatedConvolution(Mixer):
    """``out(c * conv(b * x))`` with b, c and x projections of the input.

    Args:
        kernel_size: tokens that a filter reaches over.
        bias: of projections and filters.
    """

    cache_type: ClassVar[str] = "conv"
    fixed_state: ClassVar[bool] = True

    def __init__(self, width: int, positions: int, *, kernel_size: Count = 3, bias: bool = False) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width, bias=bias)
        self.conv = ShortConvolution(width, kernel_size, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        b, c, x = self.in_proj(hidden).chunk(3, -1)
        return self.out_proj(c * self.conv(step.silence(b * x), step))

    def state_size(self, tokens: int) -> int:
        # here the filter's inputs are all the state there is
        return self.conv.in_channels * (self.conv.kernel_size[0] - 1)

    def option_for_state(self, elements: int) -> tuple[str, int]:
        return "kernel_size", elements // self.conv.in_channels + 1

    def flops(self, tokens: int) -> int:
        return linear_flops((self.in_proj, self.conv, self.out_proj), tokens)
