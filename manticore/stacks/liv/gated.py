"""Operators with a gate C of the token: scaled Toeplitz (convolutions) and diagonal (memoryless ones).

    Toeplitz    y_i = f(C_i) sum_j K_{i-j} (B_j V_j)     K explicit and short, or implicit and as long as the text
    diagonal    y_i = f(C_i) V_i

f is the identity, ReLU or swish. Where channel mixing is dense or grouped, an explicit K mixes the channels of a group,
and an implicit one meets outer products of the group's channels, as in multi-head Hyena.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from manticore.stacks.hyena import Hyena, MultiHeadHyena
from manticore.stacks.liv.low_rank import NONLINEARITIES
from manticore.stacks.mixer import Mixer, Step, head_width, linear_flops
from manticore.stacks.mlp import SwiGLU
from manticore.stacks.short_convolution import ShortConvolution, ShortGatedConvolution


class ExplicitOperator(ShortGatedConvolution):
    """The short gated convolution with a function of its gate, and channels that meet in groups.

    Args:
        nonlinearity: 1 none, 3 ReLU, 4 swish.
        groups: of channels that the kernel mixes; as many as channels is none.
        kernel_size: tokens that a filter reaches over.
    """

    def __init__(self, width: int, positions: int, *, nonlinearity: int, groups: int, kernel_size: int) -> None:
        super().__init__(width, positions, kernel_size=kernel_size)
        head_width(width, groups, "groups")
        if groups < width:
            self.conv = ShortConvolution(width, kernel_size, bias=False, groups=groups)
        self.function = NONLINEARITIES[nonlinearity][1]

    def _gate(self, c: Tensor) -> Tensor:
        return self.function(c)


class ImplicitOperator(Hyena):
    """Hyena with a function of its gate.

    Args:
        nonlinearity: 1 none, 3 ReLU, 4 swish.
        filter_order: hidden units of the network that writes the filters.
    """

    def __init__(self, width: int, positions: int, *, nonlinearity: int, filter_order: int) -> None:
        super().__init__(width, positions, inner_factor=1, proj_groups=1, filter_order=filter_order)
        self.function = NONLINEARITIES[nonlinearity][1]

    def _gate(self, x0: Tensor) -> Tensor:
        return self.function(x0)


class GroupedImplicitOperator(MultiHeadHyena):
    """Multi-head Hyena with a function of its gate.

    Args:
        nonlinearity: 1 none, 3 ReLU, 4 swish.
        num_groups: of channels, each with one filter.
        filter_order: hidden units of the network that writes the filters.
    """

    def __init__(self, width: int, positions: int, *, nonlinearity: int, num_groups: int, filter_order: int) -> None:
        super().__init__(width, positions, num_groups=num_groups, proj_groups=1, filter_order=filter_order)
        self.function = NONLINEARITIES[nonlinearity][1]

    def _gate(self, x1: Tensor) -> Tensor:
        return self.function(x1)


class MemorylessOperator(SwiGLU):
    """A gate and a value, and a map back, with any function of the gate.

    Args:
        nonlinearity: 1 none, 3 ReLU, 4 swish.
        inner_width: hidden units; None is as in SwiGLU.
    """

    def __init__(self, width: int, positions: int, *, nonlinearity: int, inner_width: int | None = None) -> None:
        super().__init__(width, positions, inner_width=inner_width)
        self.function = NONLINEARITIES[nonlinearity][1]

    def _gate(self, c: Tensor) -> Tensor:
        return self.function(c)


class ChannelGate(Mixer):
    """A gate and a value of the stream's own width, channel by channel, without a map back.

    Args:
        nonlinearity: 1 none, 3 ReLU, 4 swish.
    """

    feature_groups = (("V",),)
    hands_on = ("V",)

    def __init__(self, width: int, positions: int, *, nonlinearity: int) -> None:
        super().__init__()
        self.function = NONLINEARITIES[nonlinearity][1]
        self.family = "a gate of channels"
        self.gate_proj = nn.Linear(width, width, bias=False)
        self.up_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        value = step.taken.get("V")
        if value is None:
            value = self.up_proj(hidden)
        step.hand_on(V=value)
        return self.function(self.gate_proj(hidden)) * value

    def _leave_out(self) -> None:
        del self.up_proj

    def flops(self, tokens: int) -> int:
        return linear_flops((self.gate_proj,) if self.taken else (self.gate_proj, self.up_proj), tokens)
