"""Channel mixers that see one token at a time: a plain MLP and SwiGLU.

    mlp       W2 gelu(W1 x)                      (GELU by its tanh approximation)
    swiglu    W3 (silu(W1 x) * W2 x)             (Shazeer, 2020)

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from manticore.option_types import Count
from manticore.stacks.mixer import Mixer, Step, linear_flops

_ROUND_TO = 16


class MLP(Mixer):
    """Two layers with a GELU between them.

    Args:
        inner_width: hidden units; None is 4 D.
    """

    def __init__(self, width: int, positions: int, *, inner_width: Count | None = None) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, inner_width or 4 * width, bias=False)
        self.down_proj = nn.Linear(inner_width or 4 * width, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(hidden), approximate="tanh"))

    def flops(self, tokens: int) -> int:
        return linear_flops((self.up_proj, self.down_proj), tokens)


class SwiGLU(Mixer):
    """A gated layer and a layer back.

    Args:
        inner_width: hidden units; None is 8/3 D, rounded up to a multiple of 16.
    """

    feature_groups = (("V",),)
    hands_on = ("V",)

    def __init__(self, width: int, positions: int, *, inner_width: Count | None = None) -> None:
        super().__init__()
        inner = inner_width or -(-(8 * width // 3) // _ROUND_TO) * _ROUND_TO
        self.family = f"a gated map of {inner}"
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        value = cast(Tensor, step.taken["V"]) if "V" in step.taken else self.up_proj(hidden)
        step.hand_on(V=value)
        return self.down_proj(self._gate(self.gate_proj(hidden)) * value)

    def _gate(self, c: Tensor) -> Tensor:
        """What C becomes before it gates."""
        return F.silu(c)

    def _leave_out(self) -> None:
        del self.up_proj

    def flops(self, tokens: int) -> int:
        values = () if self.taken else (self.up_proj,)
        return linear_flops((self.gate_proj, *values, self.down_proj), tokens)
