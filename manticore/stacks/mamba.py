"""Mamba and Mamba-2: selective state spaces between a short convolution and a gate.

    Mamba     h_t = exp(d_t A) h_{t-1} + d_t B_t x_t,   y_t = C_t h_t + D x_t,   out(y_t silu(z_t))
              A [C, N] diagonal, d_t [C] from a map of low rank                     (Gu & Dao, 2023)
    Mamba-2   the same with one d_t and one A per head, normed after the gate       (Dao & Gu, 2024)

Shapes: B batch, T tokens, D width, C inner channels, N state size, H heads, P head width, R rank of the time step.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from manticore.kernels.scan import selective_scan
from manticore.kernels.scan_ops import forward_flops as scan_flops
from manticore.option_types import Count, Positive
from manticore.stacks.delta import reset_time_step_bias
from manticore.stacks.mixer import Mixer, Step, compute_dtype, head_width, linear_flops, merge_heads, split_heads
from manticore.stacks.recurrences import scalar_decay, scalar_decay_flops
from manticore.stacks.short_convolution import ShortConvolution


class Mamba(Mixer):
    """The block of the first Mamba; it mixes channels too, so it needs no MLP beside it.

    Args:
        expand: C = expand * D.
        state_size: N.
        kernel_size: of the short convolution.
        time_step_rank: R; None is D / 16, rounded up.
        least_time_step: time steps start between this
        most_time_step: and this.
    """

    cache_type = "linear_attention"
    fixed_state = True
    feature_groups = (("B", "V"), ("B", "V", "decay"))
    hands_on = ("B", "V", "decay", "rate", "state")

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        expand: Count = 2,
        state_size: Count = 4,
        kernel_size: Count = 4,
        time_step_rank: Count | None = None,
        least_time_step: Positive = 1e-3,
        most_time_step: Positive = 1e-1,
    ) -> None:
        super().__init__()
        self.inner, self.state_width = expand * width, state_size
        self.family = f"a selective recurrence of {self.inner} x {state_size}"
        self.left_out: tuple[str, ...] = ()
        self.rank = time_step_rank or math.ceil(width / 16)
        self.time_steps = (least_time_step, most_time_step)
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=False)
        self.conv = ShortConvolution(self.inner, kernel_size, bias=True)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.empty(self.inner, state_size))
        self.D = nn.Parameter(torch.empty(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        x, z = self.in_proj(hidden).chunk(2, -1)
        x = step.silence(F.silu(self.conv(step.silence(x), step)))
        widths = self._widths
        parts = dict(zip(widths, self.x_proj(x).split(list(widths.values()), -1)))
        dtype, taken = compute_dtype(hidden), step.taken
        # the readout C is this layer's own, whatever it takes; so is the gate
        value, b = (x, parts["B"]) if "V" not in taken else (cast(Tensor, taken["V"]), cast(Tensor, taken["B"]))
        if "decay" in taken:
            time_step, rate, state = cast(Tensor, taken["decay"]), cast(Tensor, taken["rate"]), taken["state"]
            bias = None
        else:
            time_step = F.linear(parts["decay"], self.dt_proj.weight)
            rate, state, bias = -self.A_log.to(dtype).exp(), step.state, self.dt_proj.bias
        if step.handed is not None:
            steps = time_step if bias is None else F.softplus(time_step.to(dtype) + bias.to(dtype))
            # the cache writes the next state over this one
            begin = None if state is None else state.clone()
            step.hand_on(B=b, V=value, decay=steps, rate=rate, state=begin)
        out, state = selective_scan(
            value.mT,
            time_step.mT,
            rate,
            b.mT,
            parts["C"].mT,
            D=self.D,
            z=z.mT,
            delta_bias=bias,
            delta_softplus=bias is not None,
            initial_state=state,
            return_last_state=True,
        )
        if "decay" not in taken:
            step.keep(state)
        return self.out_proj(out.mT)

    @property
    def _widths(self) -> dict[str, int]:
        """What the map of features gives, in order."""
        every = {"decay": self.rank, "B": self.state_width, "C": self.state_width}
        return {name: width for name, width in every.items() if name not in self.left_out}

    def _leave_out(self) -> None:
        self.left_out = self.taken
        self.x_proj = nn.Linear(self.inner, sum(self._widths.values()), bias=False)
        if "decay" in self.taken:
            del self.dt_proj, self.A_log

    @property
    def cache_slot(self) -> str:
        # the convolution before the readout goes on, whoever holds the state
        return "conv" if "decay" in self.taken else self.cache_type

    def state_size(self, tokens: int) -> int:
        return 0 if "decay" in self.taken else self.inner * self.state_width

    def option_for_state(self, elements: int) -> tuple[str, int]:
        return "state_size", elements // self.inner

    def flops(self, tokens: int) -> int:
        sequence, matrix, channels = (1, self.inner, tokens), (self.inner, self.state_width), (self.inner,)
        layers, own = [self.in_proj, self.conv, self.x_proj, self.out_proj], "decay" not in self.taken
        bias = channels if own else None
        scan = scan_flops(sequence, sequence, matrix, None, None, channels, sequence, bias, None, own)
        return scan + linear_flops([*layers, self.dt_proj] if own else layers, tokens)

    def reset_extra_parameters(self) -> None:
        init.ones_(self.D)
        if "decay" in self.left_out:
            return
        bound = self.rank**-0.5
        init.uniform_(self.dt_proj.weight, -bound, bound)
        reset_time_step_bias(self.dt_proj.bias, *self.time_steps)
        rates = torch.arange(1, self.state_width + 1, dtype=self.A_log.dtype, device=self.A_log.device)
        init.copy_(self.A_log, rates.log().expand_as(self.A_log))


class Mamba2(Mixer):
    """The block of Mamba-2, with one group of B and C for all heads.

    Args:
        expand: C = expand * D.
        state_size: N.
        num_heads: H.
        kernel_size: of the short convolution.
        least_time_step: time steps start between this
        most_time_step: and this.
    """

    cache_type = "linear_attention"
    fixed_state = True

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        expand: Count = 2,
        state_size: Count = 4,
        num_heads: Count = 8,
        kernel_size: Count = 4,
        least_time_step: Positive = 1e-3,
        most_time_step: Positive = 1e-1,
    ) -> None:
        super().__init__()
        self.inner, self.state_width, self.num_heads = expand * width, state_size, num_heads
        self.head_dim = head_width(self.inner, num_heads)
        self.time_steps = (least_time_step, most_time_step)
        self.in_proj = nn.Linear(width, 2 * self.inner + 2 * state_size + num_heads, bias=False)
        self.conv = ShortConvolution(self.inner + 2 * state_size, kernel_size, bias=True)
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        dtype = compute_dtype(hidden)
        convolved = self.inner + 2 * self.state_width
        z, x, time_step = self.in_proj(hidden).split([self.inner, convolved, self.num_heads], -1)
        x = step.silence(F.silu(self.conv(step.silence(x), step))).to(dtype)
        x, b, c = x.split([self.inner, self.state_width, self.state_width], -1)
        time_step = F.softplus(time_step.to(dtype) + self.dt_bias.to(dtype)).mT
        x = split_heads(x, self.num_heads)
        b, c = (y[:, None].expand(-1, self.num_heads, -1, -1) for y in (b, c))
        log_decay = -self.A_log.to(dtype).exp()[:, None] * time_step
        out, state = scalar_decay(c, b, x * time_step[..., None], log_decay, step.state)
        step.keep(state)
        out = merge_heads(out + self.D.to(dtype)[:, None, None] * x).to(hidden.dtype)
        return self.out_proj(self.norm(out * F.silu(z)))

    def state_size(self, tokens: int) -> int:
        return self.inner * self.state_width

    def option_for_state(self, elements: int) -> tuple[str, int]:
        return "state_size", elements // self.inner

    def flops(self, tokens: int) -> int:
        recurrence = scalar_decay_flops(tokens, self.num_heads, self.state_width, self.head_dim)
        return linear_flops((self.in_proj, self.conv, self.out_proj), tokens) + recurrence

    def reset_extra_parameters(self) -> None:
        reset_time_step_bias(self.dt_bias, *self.time_steps)
        init.uniform_(self.A_log, 1.0, 16.0)
        init.copy_(self.A_log, self.A_log.log())
        init.ones_(self.D)
