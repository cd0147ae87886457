"""RWKV-5 and RWKV-6: a decaying state read with a bonus for the current token, and the channel mixer beside it.

    S_t = diag(w_t) S_{t-1} + k_t v_t^T,   o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t
    time mixer       out(norm(o_t / divisor) * silu(g_t))
    channel mixer    sigmoid(r_t) * (W_v relu(W_k x_t)^2)

Every input is a mix of the token and the one before it. In version 5 the mixes and the decays w are learned numbers,
in version 6 maps of low rank add what the input says (Peng et al., "Eagle and Finch", 2024).

Shapes: B batch, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from manticore.option_types import Count, Positive
from manticore.stacks.mixer import MatrixState, Mixer, Step, compute_dtype, head_width, linear_flops, split_heads
from manticore.stacks.recurrences import channel_decay, channel_decay_flops

# powers of a ramp over the channels that the mixes start from, per input
_MIXES = {"w": 1.0, "k": 1.0, "v": 1.0, "r": 0.5, "g": 0.5}


def token_before(hidden: Tensor, step: Step) -> Tensor:
    """``[B, T, D]``: the token before each token, zeros before the first."""
    return step.window(hidden.mT, 1)[..., :-1].mT


def ramp(width: int, like: Tensor) -> Tensor:
    """``[D]``: 0 to almost 1 over the channels, on the device of ``like``."""
    return torch.arange(width, dtype=torch.float32, device=like.device) / width


class _TimeMixer(MatrixState):
    """What both versions share: projections, the recurrence, the norm over heads, the gate."""

    cache_type = "linear_attention"
    # as in the released training code: maps alone decay, not what sets mixes, decays and the bonus
    _no_weight_decay: ClassVar[frozenset[str]] = frozenset(
        ("decay", "bonus", "base_mix", "mixes", "mix_down", "mix_up", "decay_down", "decay_up")
    )

    def __init__(self, width: int, *, num_heads: int, divisor: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.divisor = num_heads, head_width(width, num_heads), divisor
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(num_heads, width, eps=1e-5)
        self.decay = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(num_heads, self.head_dim))

    def _run(self, inputs: dict[str, Tensor], log_rate: Tensor, step: Step) -> Tensor:
        """The recurrence on the mixed inputs, with decays exp(-exp(log_rate)) ``[B, T, D]``."""
        hidden = inputs["r"]
        dtype = compute_dtype(hidden)
        r, k, v, rate = (
            split_heads(x, self.num_heads).to(dtype)
            for x in (
                self.receptance(hidden),
                step.silence(self.key(inputs["k"])),
                self.value(inputs["v"]),
                log_rate,
            )
        )
        out, state = channel_decay(r, k, v, -rate.exp(), step.state, self.bonus.to(dtype))
        step.keep(state)
        # GroupNorm takes channels second; every token is a sample of its own
        flat = (out.transpose(1, 2).flatten(2) / self.divisor).to(hidden.dtype)
        normed = self.norm(flat.flatten(0, 1)).view_as(flat)
        return self.out_proj(normed * F.silu(self.gate(inputs["g"])))

    def flops(self, tokens: int) -> int:
        layers = (self.receptance, self.key, self.value, self.gate, self.out_proj)
        return linear_flops(layers, tokens) + channel_decay_flops(tokens, self.num_heads, self.head_dim, self.head_dim)

    def reset_extra_parameters(self) -> None:
        width = len(self.decay)
        place = torch.arange(width, dtype=torch.float32, device=self.decay.device)
        share = place / max(1, width - 1)
        init.copy_(self.decay, (-6 + 5 * share**0.7).to(self.decay.dtype))
        # RWKV adds a slope that grows with the layer's height; its lowest layer has the zigzag only
        start = 0.1 * ((place + 1) % 3 - 1)
        init.copy_(self.bonus, start.view_as(self.bonus).to(self.bonus.dtype))


class RWKV5TimeMixer(_TimeMixer):
    """The time mixer of RWKV-5: the decays are learned numbers.

    Args:
        num_heads: H.
        divisor: of the heads' outputs before their norm.
    """

    def __init__(self, width: int, positions: int, *, num_heads: Count = 8, divisor: Positive = 8.0) -> None:
        super().__init__(width, num_heads=num_heads, divisor=divisor)
        self.mixes = nn.ParameterDict({name: nn.Parameter(torch.empty(width)) for name in "kvrg"})

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        hidden = step.silence(hidden)
        before = token_before(hidden, step)
        inputs = {name: before + (hidden - before) * mix for name, mix in self.mixes.items()}
        return self._run(inputs, self.decay.expand_as(hidden), step)

    def reset_extra_parameters(self) -> None:
        super().reset_extra_parameters()
        for name, mix in self.mixes.items():
            init.copy_(mix, (ramp(len(mix), mix) ** _MIXES[name]).to(mix.dtype))


class RWKV6TimeMixer(_TimeMixer):
    """The time mixer of RWKV-6: mixes and decays depend on the input.

    Args:
        num_heads: H.
        divisor: of the heads' outputs before their norm.
        mix_rank: of the maps from the input to the five mixes.
        decay_rank: of the map from the input to the decays.
    """

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        num_heads: Count = 8,
        divisor: Positive = 8.0,
        mix_rank: Count = 32,
        decay_rank: Count = 64,
    ) -> None:
        super().__init__(width, num_heads=num_heads, divisor=divisor)
        self.mix_rank = mix_rank
        self.base_mix = nn.Parameter(torch.empty(width))
        self.mixes = nn.Parameter(torch.empty(len(_MIXES), width))
        self.mix_down = nn.Parameter(torch.empty(width, len(_MIXES) * mix_rank))
        self.mix_up = nn.Parameter(torch.empty(len(_MIXES), mix_rank, width))
        self.decay_down = nn.Parameter(torch.empty(width, decay_rank))
        self.decay_up = nn.Parameter(torch.empty(decay_rank, width))

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        hidden = step.silence(hidden)
        change = token_before(hidden, step) - hidden
        # [B, T, 5, rank] @ [5, rank, D]
        low = torch.tanh((hidden + change * self.base_mix) @ self.mix_down).unflatten(-1, (len(_MIXES), -1))
        shifts = torch.einsum("btmr,mrd->mbtd", low, self.mix_up)
        inputs = {
            name: hidden + change * (mix + shift) for name, mix, shift in zip(_MIXES, self.mixes, shifts, strict=True)
        }
        log_rate = self.decay + torch.tanh(inputs["w"] @ self.decay_down) @ self.decay_up
        return self._run(inputs, log_rate, step)

    def flops(self, tokens: int) -> int:
        maps = (self.mix_down, self.mix_up, self.decay_down, self.decay_up)
        return super().flops(tokens) + sum(2 * tokens * weight.numel() for weight in maps)

    def reset_extra_parameters(self) -> None:
        super().reset_extra_parameters()
        share = ramp(len(self.base_mix), self.base_mix)
        init.copy_(self.base_mix, (1 - share).to(self.base_mix.dtype))
        # here the mixes say how much of the token before to take
        start = torch.stack([1 - share**power for power in _MIXES.values()])
        init.copy_(self.mixes, start.to(self.mixes.dtype))
        for weight in (self.mix_down, self.mix_up, self.decay_down, self.decay_up):
            init.uniform_(weight, -1e-4, 1e-4)


class RWKVChannelMixer(Mixer):
    """The channel mixer of RWKV-5 and RWKV-6, which compute the same.

    Args:
        inner_width: hidden units.
    """

    cache_type = "conv"

    def __init__(self, width: int, positions: int, *, inner_width: Count = 512) -> None:
        super().__init__()
        self.key_mix = nn.Parameter(torch.empty(width))
        self.receptance_mix = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(width, inner_width, bias=False)
        self.value = nn.Linear(inner_width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        hidden = step.silence(hidden)
        before = token_before(hidden, step)
        change = hidden - before
        units = F.relu(self.key(before + change * self.key_mix)).square()
        return self.receptance(before + change * self.receptance_mix).sigmoid() * self.value(units)

    def flops(self, tokens: int) -> int:
        return linear_flops((self.key, self.value, self.receptance), tokens)

    def reset_extra_parameters(self) -> None:
        for mix in (self.key_mix, self.receptance_mix):
            init.copy_(mix, ramp(len(mix), mix).to(mix.dtype))
