"""Causal convolutions as long as the sequence, by FFT, and the filters that a small network writes.

    y_t = sum_{s <= t} h_{t-s} x_s                                  in O(T log T)
    h_c(t) = (W_4 sin(f W_3' sin(f W_2' sin(f W_1' z_t))))_c exp(-|d_c| t)         (Poli et al., "Hyena", 2023)

z_t is a learned table, started at (t, cos, -sin) of a slow wave; f one learned frequency per hidden unit; d_c fixed,
spread so that channels forget after between 0.3 and 1.5 times the table's length.

Shapes: B batch, T tokens, C channels, S rows of the table.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from manticore.errors import ManticoreError
from manticore.flops import real_fft_flops
from manticore.stacks.mixer import compute_dtype, linear_flops

_FEATURES = 3
_SLOW_WAVE = 1e-4
# a filter falls to this share of its height ...
_FLOOR = 0.01
# ... after so many lengths of the table: first and last channel
_REACHES = (1.5, 0.3)


def long_convolution(x: Tensor, filters: Tensor) -> Tensor:
    """Causal convolution by FFT.

    Args:
        x: ``[…, C, T]``.
        filters: ``[C, T]``, or what broadcasts with x.

    Returns:
        ``[…, C, T]``.
    """
    tokens = x.shape[-1]
    length = _fft_length(tokens)
    spectrum = torch.fft.rfft(x, n=length) * torch.fft.rfft(filters, n=length)
    return torch.fft.irfft(spectrum, n=length)[..., :tokens]


def long_convolution_flops(tokens: int, channels: int, filters: int) -> int:
    """FLOPs of the transforms of :func:`long_convolution`, 5/2 n log2 n for a real one of length n."""
    return (2 * channels + filters) * real_fft_flops(_fft_length(tokens))


def _fft_length(tokens: int) -> int:
    """A power of two that leaves room for the tail, which would wrap around into the first tokens."""
    return 1 << (2 * tokens - 2).bit_length()


class ImplicitFilter(nn.Module):
    """Filters of C channels written by a network of four layers from a table of positions.

    Args:
        channels: C.
        order: hidden units.
        positions: S, the longest sequence.
    """

    # as in the released code of Hyena, whose filters have a weight decay of 0
    _no_weight_decay: ClassVar[bool] = True

    def __init__(self, channels: int, order: int, positions: int) -> None:
        super().__init__()
        self.channels, self.order, self.positions = channels, order, positions
        self.table = nn.Parameter(torch.empty(positions, _FEATURES))
        self.frequency = nn.Parameter(torch.empty(order))
        self.bias = nn.Parameter(torch.empty(channels))
        self.first = nn.Linear(_FEATURES, order)
        self.second = nn.Linear(order, order)
        self.third = nn.Linear(order, order)
        self.last = nn.Linear(order, channels, bias=False)

    def forward(self, tokens: int) -> Tensor:
        """Filters ``[C, T]`` for sequences of T tokens.

        Raises:
            ManticoreError: the table is shorter.
        """
        if tokens > self.positions:
            raise ManticoreError(
                f"stack: a sequence of {tokens} tokens, but the filters reach over {self.positions} "
                f"(got {tokens}, expected at most {self.positions}). Fix: a stack with a larger max_position_embeddings"
            )
        x = self.table[:tokens]
        for layer in (self.first, self.second, self.third):
            x = torch.sin(self.frequency * layer(x))
        filters = self.last(x).T
        dtype = compute_dtype(filters)
        time = _line(0.0, 1.0, self.positions, filters.device, dtype)[:tokens]
        slow, fast = (math.log(_FLOOR) / reach for reach in _REACHES)
        decays = _line(slow, fast, self.channels, filters.device, dtype)
        return filters.to(dtype) * (decays[:, None] * time).exp()

    def flops(self, tokens: int) -> int:
        """FLOPs of writing filters of that length."""
        return linear_flops((self.first, self.second, self.third, self.last), tokens)

    def reset_extra_parameters(self) -> None:
        """The slow wave, unit frequencies, random biases."""
        time = _line(0.0, 1.0, self.positions, self.table.device, torch.float32)
        steps = torch.arange(self.positions, device=self.table.device, dtype=torch.float32)
        angle = _SLOW_WAVE * 2 * math.pi * steps / self.positions
        init.copy_(self.table, torch.stack([time, angle.cos(), -angle.sin()], -1).to(self.table.dtype))
        init.ones_(self.frequency)
        init.normal_(self.bias)


def _line(start: float, stop: float, points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.linspace(start, stop, points, device=device, dtype=dtype)
