"""Operators by their codes once more, written from y_i = sum_j T_ij x_j, token by token.

A twin takes the primitive, its input ``[T, D]`` and its code, and where it takes features of a lower layer, that
layer's primitive, input and which features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from twins import TWINS, _filter, _long, _short

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "1": lambda s: s,
    "2": lambda s: (s - s.max()).exp() / (s - s.max()).exp().sum(),
    "3": lambda s: s.clamp_min(0),
    "4": lambda s: s / (1 + torch.exp(-s)),
}


class Lower(NamedTuple):
    """A lower layer whose features are taken."""

    mixer: Any
    x: Tensor
    features: Sequence[str]


def operator(m: Any, x: Tensor, code: str, lower: Lower | None = None) -> Tensor:
    """``[T, D]`` → ``[T, D]``."""
    if hasattr(m, "a"):
        below = [None if lower is None else lower._replace(mixer=half) for half in _halves(lower)]
        return operator(m.a, x, code, below[0]) - operator(m.b, x, code, below[1])
    kinds = {"1": _diagonal, "2": _low_rank, "3": _toeplitz, "4": _recurrent}
    return kinds[code[1]](m, x, code, lower)


def _halves(lower: Lower | None) -> list[Any]:
    return [None, None] if lower is None else [lower.mixer.a, lower.mixer.b]


def _projected(m: Any, x: Tensor) -> list[Tensor]:
    """Queries, and keys and values where it has maps for them."""
    parts = [getattr(m, name)(x) for name in ("q_proj", "k_proj", "v_proj") if hasattr(m, name)]
    if m.conv is None:
        return parts
    return list(_short(m.conv, torch.cat(parts, -1)).split([part.shape[1] for part in parts], -1))


def _turned(vector: Tensor, position: int, base: float | None) -> Tensor:
    if base is None:
        return vector
    half = len(vector) // 2
    pairs = torch.complex(vector[:half], vector[half:])
    angles = torch.tensor([position * base ** (-i / half) for i in range(half)], dtype=vector.dtype)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag])


def _low_rank(m: Any, x: Tensor, code: str, lower: Lower | None) -> Tensor:
    maker = m if lower is None else lower.mixer
    queries = _projected(m, x)[0]
    _, keys, values = _projected(maker, x if lower is None else lower.x)
    base, width = getattr(m, "rotary_base", None), m.head_dim
    used = m.num_heads // maker.num_kv_heads
    rows = []
    for i in range(len(x)):
        first = max(0, i - m.window) if m.window is not None else 0
        row = []
        for head in range(m.num_heads):
            own, shared = slice(head * width, (head + 1) * width), head // used
            theirs = slice(shared * width, (shared + 1) * width)
            q = _turned(queries[i, own], i, base)
            scores = [_turned(keys[j, theirs], j, base) @ q / math.sqrt(width) for j in range(first, i + 1)]
            row.append(FUNCTIONS[code[3]](torch.stack(scores)) @ values[first : i + 1, theirs])
        rows.append(torch.cat(row))
    return m.out_proj(torch.stack(rows))


def _recurrent(m: Any, x: Tensor, code: str, lower: Lower | None) -> Tensor:
    if code[4] != "1":
        return TWINS["mamba-2"](m, x)
    if lower is None:
        return TWINS["mamba"](m, x)
    own, theirs = _of_mamba(m, x), _of_mamba(lower.mixer, lower.x)
    b, u = theirs["B"], theirs["V"]
    delta, rate = (theirs if "decay" in lower.features else own)["decay"], theirs.get("rate")
    rate = rate if "decay" in lower.features else own["rate"]
    state, rows = x.new_zeros(m.inner, m.state_width), []
    for t in range(len(x)):
        state = torch.exp(delta[t][:, None] * rate) * state + (delta[t] * u[t])[:, None] * b[t]
        rows.append(state @ own["C"][t] + m.D * u[t])
    return m.out_proj(torch.stack(rows) * F.silu(own["z"]))


def _of_mamba(m: Any, x: Tensor) -> dict[str, Tensor]:
    u, z = m.in_proj(x).chunk(2, -1)
    u = F.silu(_short(m.conv, u))
    found = {"z": z, "V": u}
    sizes = {"decay": m.rank, "B": m.state_width, "C": m.state_width}
    there = {name: size for name, size in sizes.items() if name not in m.left_out}
    found.update(zip(there, m.x_proj(u).split(list(there.values()), -1)))
    if "decay" in found:
        found["decay"] = F.softplus(m.dt_proj(found["decay"]))
        found["rate"] = -m.A_log.exp()
    return found


def _toeplitz(m: Any, x: Tensor, code: str, lower: Lower | None) -> Tensor:
    gate, maker = FUNCTIONS[code[3]], m if lower is None else lower.mixer
    convolver = maker if lower is not None and "kernel" in lower.features else m
    source = x if lower is None else lower.x
    if code[0] == "7":
        b, _, v = maker.in_proj(source).chunk(3, -1)
        c = m.in_proj(x)
        c = c.chunk(3, -1)[1] if c.shape[1] > m.width else c
        return m.out_proj(gate(c) * _grouped(convolver.conv, b * v))
    if code[4] != "1":
        x1, x2, v = (y.view(len(x), m.num_groups, -1) for y in _short(m.in_proj.conv, m.in_proj.linear(x)).chunk(3, -1))
        z = torch.einsum("tgi,tgj->tgij", v, x2)
        written = [_filter(m.filters, t) for t in range(len(x))]
        z = torch.stack(
            [
                sum(torch.einsum("g,gij->gij", written[t - s], z[s]) for s in range(t + 1))
                + m.filters.bias[:, None, None] * z[t]
                for t in range(len(x))
            ]
        )
        return m.out_proj(torch.einsum("tgij,tgi->tgj", z, gate(x1)).flatten(1))
    _, x1, v = _short(maker.in_proj.conv, maker.in_proj.linear(source)).chunk(3, -1)
    x0 = _short(m.in_proj.conv, m.in_proj.linear(x))[:, : m.inner]
    return m.out_proj(gate(x0) * _long(convolver.filters, x1 * v))


def _grouped(conv: Any, p: Tensor) -> Tensor:
    """A convolution that mixes the channels of a group."""
    size, groups, rows = conv.kernel_size[0], conv.groups, []
    weight = conv.weight.view(groups, -1, *conv.weight.shape[1:])
    inputs = p.view(len(p), groups, -1)
    for t in range(len(p)):
        lags = range(min(size, t + 1))
        rows.append(sum(torch.einsum("goi,gi->go", weight[..., size - 1 - j], inputs[t - j]) for j in lags).flatten())
    return torch.stack(rows)


def _diagonal(m: Any, x: Tensor, code: str, lower: Lower | None) -> Tensor:
    value = m.up_proj(x) if lower is None else lower.mixer.up_proj(lower.x)
    out = FUNCTIONS[code[3]](m.gate_proj(x)) * value
    return m.down_proj(out) if code[4] == "2" else out
