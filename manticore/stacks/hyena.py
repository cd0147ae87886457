"""Hyena, multi-head Hyena and Hyena experts: gates around a convolution as long as the sequence.

    hyena           y = x0 * (h conv (x1 * v) + b (x1 * v))
    multi-head      z[g,i,j] = v[g,i] x2[g,j];  z <- h_g conv z + b_g z;  y[g,j] = sum_i z[g,i,j] x1[g,i]
    experts         hyena on units x experts, then y[i] = sum_e w_e y[i,e] with router weights w

x0, x1, x2, v are projections after a short convolution. A group's projections are computed once and repeated
``proj_groups`` times (Poli et al., 2023; Massaroli et al., 2023; Poli et al., "Mechanistic Design", 2024).

Shapes: B batch, T tokens, D width, C inner channels, G groups (heads), I channels of a group, E experts.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from manticore.errors import ManticoreError
from manticore.option_types import Count
from manticore.stacks.long_convolution import ImplicitFilter, long_convolution, long_convolution_flops
from manticore.stacks.mixer import Mixer, Step, compute_dtype, head_width, linear_flops
from manticore.stacks.moe import Router, check_experts, router_weights
from manticore.stacks.short_convolution import ShortConvolution

_SHORT_KERNEL = 3


class _Projections(nn.Module):
    """``[B, T, D]`` → three of ``[B, T, C]``: projected, repeated, and each channel convolved with its own filter."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        if 3 * inner % groups:
            raise ManticoreError(
                f"{groups} groups do not divide {3 * inner} projected channels. Fix: another proj_groups"
            )
        self.width, self.inner, self.groups = width, inner, groups
        self.linear = nn.Linear(width, 3 * inner // groups)
        self.conv = ShortConvolution(3 * inner, _SHORT_KERNEL, bias=True)

    def forward(self, hidden: Tensor, step: Step) -> tuple[Tensor, ...]:
        """All three, or the first alone after :meth:`keep_first`."""
        x = step.silence(self.linear(hidden)).repeat(1, 1, self.groups)
        return self.conv(x[..., : self.conv.in_channels], step).split(self.inner, -1)

    def keep_first(self) -> None:
        """Leave out the weights of the second and the third."""
        if self.groups == 1:
            self.linear = nn.Linear(self.width, self.inner)
        self.conv = ShortConvolution(self.inner, _SHORT_KERNEL, bias=True)

    def flops(self, tokens: int) -> int:
        return linear_flops((self.linear, self.conv), tokens)


def _held(x: Tensor, step: Step) -> Tensor:
    """``[B, T, C]`` → ``[B, S, C]``: all tokens so far."""
    if step.memory is None:
        return x
    return step.memory.extend(x[:, None], x[:, None, :, :0])[0][:, 0]


def _convolved(filters: ImplicitFilter, x: Tensor, held: Tensor) -> Tensor:
    """``[B, T, C]`` → ``[B, T, C]``: the long convolution of all tokens so far, read at these; and the bias."""
    tokens, dtype = x.shape[1], x.dtype
    written = filters(held.shape[1])
    held = held.to(compute_dtype(held)).mT
    if tokens == 1:
        out = (held * written.flip(-1)).sum(-1, keepdim=True)
    else:
        out = long_convolution(held, written)[..., -tokens:]
    return out.mT.to(dtype) + filters.bias * x


class _Filtered(Mixer):
    """What gates around long filters have in common."""

    cache_type = "hybrid"
    fixed_state = True
    inner: int
    filters: ImplicitFilter

    def state_size(self, tokens: int) -> int:
        # of the state-space model that a filter written by so many units stands for
        return self.inner * self.filters.order

    def option_for_state(self, elements: int) -> tuple[str, int]:
        return "filter_order", elements // self.inner

    def reset_extra_parameters(self) -> None:
        self.filters.reset_extra_parameters()


class Hyena(_Filtered):
    """The Hyena operator of order 2. Its B and V are x1 and v, its C is x0.

    Args:
        inner_factor: C = inner_factor * D.
        proj_groups: how often each projection is used.
        filter_order: hidden units of the network that writes the filters.
    """

    feature_groups = (("B", "V"), ("B", "V", "kernel"))
    # x1 * v with what came before it, and its convolution
    hands_on = ("V", "kernel")

    def __init__(
        self, width: int, positions: int, *, inner_factor: Count = 4, proj_groups: Count = 4, filter_order: Count = 4
    ) -> None:
        super().__init__()
        self.inner = inner_factor * width
        self.family = f"a long convolution of {self.inner}"
        self.in_proj = _Projections(width, self.inner, proj_groups)
        self.filters = ImplicitFilter(self.inner, filter_order, positions)
        self.out_proj = nn.Linear(self.inner, width)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        x0, *rest = self.in_proj(hidden, step)
        held = step.taken["V"] if "V" in step.taken else _held(step.silence(rest[0] * rest[1]), step)
        if "kernel" in step.taken:
            convolved = step.taken["kernel"]
        else:
            held = cast(Tensor, held)
            convolved = _convolved(self.filters, held[:, -hidden.shape[1] :], held)
        step.hand_on(V=held, kernel=convolved)
        return self.out_proj(self._gate(x0) * cast(Tensor, convolved))

    def _gate(self, x0: Tensor) -> Tensor:
        """What C becomes before it gates."""
        return x0

    def _leave_out(self) -> None:
        self.in_proj.keep_first()
        if "kernel" in self.taken:
            del self.filters

    @property
    def cache_slot(self) -> str:
        # of what is convolved below, only the window before the gate is left
        return "conv" if self.taken else self.cache_type

    def state_size(self, tokens: int) -> int:
        return 0 if self.taken else super().state_size(tokens)

    def flops(self, tokens: int) -> int:
        mixing = 0
        if "kernel" not in self.taken:
            mixing = self.filters.flops(tokens) + long_convolution_flops(tokens, self.inner, self.inner)
        return self.in_proj.flops(tokens) + mixing + linear_flops((self.out_proj,), tokens)

    def reset_extra_parameters(self) -> None:
        if hasattr(self, "filters"):
            super().reset_extra_parameters()


class HyenaExperts(_Filtered):
    """Hyena whose channels are the units of experts, mixed by a router.

    Args:
        num_experts: E.
        expert_width: units of an expert.
        top_k: experts that the router chooses.
        router: "mad_code": scores below the best ``top_k`` count as 0; "sparse": they are left out.
        filter_order: hidden units of the network that writes the filters.
    """

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        num_experts: Count = 8,
        expert_width: Count = 16,
        top_k: Count = 2,
        router: Router = "mad_code",
        filter_order: Count = 16,
    ) -> None:
        super().__init__()
        check_experts(top_k, num_experts)
        self.num_experts, self.top_k, self.router_kind = num_experts, top_k, router
        self.inner = num_experts * expert_width
        self.in_proj = _Projections(width, self.inner, 1)
        self.filters = ImplicitFilter(self.inner, filter_order, positions)
        self.router = nn.Linear(width, num_experts)
        self.out_proj = nn.Linear(expert_width, width)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        x0, x1, v = self.in_proj(hidden, step)
        x = step.silence(x1 * v)
        y = x0 * _convolved(self.filters, x, _held(x, step))
        weights = router_weights(self.router(hidden), self.top_k, self.router_kind)
        # the expert is the fastest index of a channel
        mixed = (y.unflatten(-1, (-1, self.num_experts)) * weights[..., None, :]).sum(-1)
        return self.out_proj(mixed)

    def flops(self, tokens: int) -> int:
        return (
            self.in_proj.flops(tokens)
            + self.filters.flops(tokens)
            + long_convolution_flops(tokens, self.inner, self.inner)
            + linear_flops((self.router, self.out_proj), tokens)
        )


class MultiHeadHyena(_Filtered):
    """Hyena whose channels meet in outer products inside each group, with one long filter per group.

    Short sequences are computed as a product with a Toeplitz matrix instead of G * I * I transforms: the same sum,
    fewer operations.

    Args:
        num_groups: G. The released code of MAD has 8 groups of 16 channels where its paper counts 16 heads.
        proj_groups: how often each projection is used.
        filter_order: hidden units of the network that writes the filters.
    """

    def __init__(
        self, width: int, positions: int, *, num_groups: Count = 8, proj_groups: Count = 4, filter_order: Count = 2
    ) -> None:
        super().__init__()
        self.num_groups, self.group_width = num_groups, head_width(width, num_groups, "groups")
        self.in_proj = _Projections(width, width, proj_groups)
        self.filters = ImplicitFilter(num_groups, filter_order, positions)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        dtype = compute_dtype(hidden)
        x1, x2, v = (
            x.unflatten(-1, (self.num_groups, -1)).transpose(1, 2).to(dtype) for x in self.in_proj(hidden, step)
        )
        x1 = self._gate(x1)
        if step.padding is not None:
            v = v * step.padding[:, None]
        held_v, held_x2 = (v, x2) if step.memory is None else step.memory.extend(v, x2)
        filters = self.filters(held_v.shape[2])
        out = self._by_matrix if self._matrix_is_cheaper(held_v.shape[2], hidden.shape[1]) else self._by_transform
        y = out(x1, held_v, held_x2, filters)
        # the bias passes the current token's product on as it is
        y = y + self.filters.bias[:, None, None] * (x1 * v).sum(-1, keepdim=True) * x2
        return self.out_proj(y.transpose(1, 2).flatten(2).to(hidden.dtype))

    def _gate(self, x1: Tensor) -> Tensor:
        """What C becomes before it gates."""
        return x1

    def _matrix_is_cheaper(self, held: int, tokens: int) -> bool:
        matrix = 4 * tokens * held * self.group_width
        return matrix <= long_convolution_flops(held, self.group_width**2, 1)

    @staticmethod
    def _by_matrix(x1: Tensor, v: Tensor, x2: Tensor, filters: Tensor) -> Tensor:
        """``[B, G, T, I]`` of the last T of S held tokens: the filter as a matrix over (token, earlier token)."""
        tokens, held = x1.shape[2], v.shape[2]
        ends = torch.arange(held - tokens, held, device=x1.device)
        lags = ends[:, None] - torch.arange(held, device=x1.device)
        toeplitz = filters[:, lags.clamp_min(0)] * (lags >= 0)
        return ((x1 @ v.mT) * toeplitz) @ x2

    @staticmethod
    def _by_transform(x1: Tensor, v: Tensor, x2: Tensor, filters: Tensor) -> Tensor:
        """The same by G * I * I Fourier transforms."""
        products = v.mT[:, :, :, None] * x2.mT[:, :, None]
        convolved = long_convolution(products, filters[:, None, None])[..., -x1.shape[2] :]
        return (convolved * x1.mT[:, :, :, None]).sum(2).mT

    def state_size(self, tokens: int) -> int:
        return self.num_groups * self.group_width**2 * self.filters.order

    def option_for_state(self, elements: int) -> tuple[str, int]:
        width = self.num_groups * self.group_width
        return "num_groups", width**2 * self.filters.order // elements

    def flops(self, tokens: int) -> int:
        if self._matrix_is_cheaper(tokens, tokens):
            mixing = 4 * self.num_groups * tokens * tokens * self.group_width
        else:
            mixing = long_convolution_flops(tokens, self.num_groups * self.group_width**2, self.num_groups)
        return self.in_proj.flops(tokens) + self.filters.flops(tokens) + mixing + linear_flops((self.out_proj,), tokens)
