"""Every primitive of a stack once more, written as its definition: one token at a time, no chunks, no transforms.

Each twin takes a primitive and its input ``[T, D]`` (one sequence) and gives ``[T, D]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.q_proj(x), m.k_proj(x), m.v_proj(x)
    width, outputs = m.head_dim, []

    def turned(vector: Tensor, position: int) -> Tensor:
        if m.rotary_base is None:
            return vector
        out = vector.clone()
        for i in range(width // 2):
            angle = position * m.rotary_base ** (-2 * i / width)
            a, b = vector[i], vector[i + width // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + width // 2] = a * math.sin(angle) + b * math.cos(angle)
        return out

    heads = [slice(h * width, (h + 1) * width) for h in range(m.num_heads)]
    keys = [[turned(k[s, head], s) for s in range(len(x))] for head in heads[: m.num_kv_heads]]
    for t in range(len(x)):
        first = 0 if m.window is None else max(0, t - m.window)
        read = []
        for h, head in enumerate(heads):
            shared = h // (m.num_heads // m.num_kv_heads)
            scores = torch.stack(keys[shared][first : t + 1]) @ turned(q[t, head], t) / math.sqrt(width)
            read.append(scores.softmax(0) @ v[first : t + 1, heads[shared]])
        outputs.append(torch.cat(read))
    return m.out_proj(torch.stack(outputs))


def _by_head(x: Tensor, m: Any) -> Tensor:
    return x.view(len(x), m.num_heads, -1)


def linear_attention(m: Any, x: Tensor) -> Tensor:
    def features(z: Tensor, maps: Any) -> Tensor:
        return (z @ maps.first.weight.T + maps.first.bias) * (z @ maps.second.weight.T + maps.second.bias)

    q, k = features(_by_head(m.q_proj(x), m), m.q_features), features(_by_head(m.k_proj(x), m), m.k_features)
    v, outputs = _by_head(m.v_proj(x), m), []
    for t in range(len(x)):
        weights = torch.einsum("hk,shk->hs", q[t], k[: t + 1])
        outputs.append((torch.einsum("hs,shv->hv", weights, v[: t + 1]) / (weights.sum(1) + 1e-12)[:, None]).flatten())
    return m.out_proj(torch.stack(outputs))


def _rms(x: Tensor, norm: Any) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def gated_linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (_by_head(p(x), m) for p in (m.q_proj, m.k_proj, m.v_proj))
    decay = _by_head(torch.sigmoid(m.decay_up(m.decay_down(x))) ** (1 / 16), m)
    state, outputs = x.new_zeros(m.num_heads, m.head_dim, m.head_dim), []
    for t in range(len(x)):
        state = decay[t][:, :, None] * state + k[t][:, :, None] * v[t][:, None]
        outputs.append((state.mT @ q[t][:, :, None])[..., 0] / math.sqrt(m.head_dim))
    normed = _rms(torch.stack(outputs), m.norm).flatten(1)
    return m.out_proj(normed * F.silu(m.g_proj(x)))


def _short(conv: Any, x: Tensor) -> Tensor:
    size, outputs = conv.kernel_size[0], []
    for t in range(len(x)):
        total = x.new_zeros(x.shape[1]) if conv.bias is None else conv.bias
        for j in range(min(size, t + 1)):
            total = total + conv.weight[:, 0, size - 1 - j] * x[t - j]
        outputs.append(total)
    return torch.stack(outputs)


def delta_net(m: Any, x: Tensor) -> Tensor:
    q, k, v = (_by_head(y, m) for y in F.silu(_short(m.conv, m.qkv_proj(x))).chunk(3, -1))
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    beta = torch.sigmoid(m.beta_proj(x))
    kept = torch.ones_like(beta)
    if m.gated:
        kept = torch.exp(-m.log_rate.exp() * F.softplus(m.decay_proj(x) + m.decay_bias))
    state, outputs = x.new_zeros(m.num_heads, m.head_dim, m.head_dim), []
    for t in range(len(x)):
        state = kept[t][:, None, None] * state
        held = torch.einsum("hkv,hk->hv", state, k[t])
        state = state + k[t][:, :, None] * (beta[t][:, None] * (v[t] - held))[:, None]
        outputs.append(torch.einsum("hkv,hk->hv", state, q[t]) / math.sqrt(m.head_dim))
    out = _rms(torch.stack(outputs), m.norm).flatten(1)
    return m.out_proj(out * F.silu(m.gate_proj(x)) if m.gated else out)


def kimi_delta_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (_by_head(y, m) for y in F.silu(_short(m.conv, m.qkv_proj(x))).chunk(3, -1))
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    beta = torch.sigmoid(m.beta_proj(x))
    time_step = _by_head(F.softplus(m.decay_up(m.decay_down(x)) + m.decay_bias), m)
    kept = torch.exp(-m.log_rate.exp()[:, None] * time_step)
    state, outputs = x.new_zeros(m.num_heads, m.head_dim, m.head_dim), []
    for t in range(len(x)):
        state = kept[t][:, :, None] * state
        held = torch.einsum("hkv,hk->hv", state, k[t])
        state = state + k[t][:, :, None] * (beta[t][:, None] * (v[t] - held))[:, None]
        outputs.append(torch.einsum("hkv,hk->hv", state, q[t]) / math.sqrt(m.head_dim))
    gate = torch.sigmoid(x @ m.gate_down.weight.T @ m.gate_up.weight.T + m.gate_up.bias)
    return m.out_proj(_rms(torch.stack(outputs), m.norm).flatten(1) * gate)


def _filter(filters: Any, t: int) -> Tensor:
    """One value per channel."""
    x = filters.table[t]
    for layer in (filters.first, filters.second, filters.third):
        x = torch.sin(filters.frequency * layer(x))
    slow, fast, channels = math.log(0.01) / 1.5, math.log(0.01) / 0.3, filters.channels
    rates = torch.tensor([slow + (fast - slow) * c / max(1, channels - 1) for c in range(channels)], dtype=x.dtype)
    return filters.last(x) * torch.exp(rates.abs() * -t / (filters.positions - 1))


def _long(filters: Any, x: Tensor, expand: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
    """The convolution and the bias; ``expand`` brings a value per filter to the shape of one token of x."""
    written = [expand(_filter(filters, t)) for t in range(len(x))]
    return torch.stack(
        [sum(written[t - s] * x[s] for s in range(t + 1)) + expand(filters.bias) * x[t] for t in range(len(x))]
    )


def _three(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    projected = torch.cat([m.in_proj.linear(x)] * m.in_proj.groups, -1)
    return _short(m.in_proj.conv, projected).chunk(3, -1)


def hyena(m: Any, x: Tensor) -> Tensor:
    x0, x1, v = _three(m, x)
    return m.out_proj(x0 * _long(m.filters, x1 * v))


def _router(scores: Tensor, top_k: int, kind: str) -> Tensor:
    rows = []
    for row in scores:
        chosen = set(row.argsort(descending=True)[:top_k].tolist())
        left_out = 0.0 if kind == "mad_code" else -math.inf
        logits = torch.stack([s if e in chosen else row.new_tensor(left_out) for e, s in enumerate(row)])
        rows.append(logits.exp() / logits.exp().sum())
    return torch.stack(rows)


def hyena_experts(m: Any, x: Tensor) -> Tensor:
    x0, x1, v = _three(m, x)
    y = (x0 * _long(m.filters, x1 * v)).view(len(x), -1, m.num_experts)
    return m.out_proj(torch.einsum("tie,te->ti", y, _router(m.router(x), m.top_k, m.router_kind)))


def mh_hyena(m: Any, x: Tensor) -> Tensor:
    x1, x2, v = (y.view(len(x), m.num_groups, -1) for y in _three(m, x))
    z = torch.einsum("tgi,tgj->tgij", v, x2)
    z = _long(m.filters, z, lambda h: h[:, None, None])
    return m.out_proj(torch.einsum("tgij,tgi->tgj", z, x1).flatten(1))


def short_gated_convolution(m: Any, x: Tensor) -> Tensor:
    b, c, v = m.in_proj(x).chunk(3, -1)
    return m.out_proj(c * _short(m.conv, b * v))


def mamba(m: Any, x: Tensor) -> Tensor:
    u, z = m.in_proj(x).chunk(2, -1)
    u = F.silu(_short(m.conv, u))
    low, b, c = m.x_proj(u).split([m.rank, m.state_width, m.state_width], -1)
    delta = F.softplus(m.dt_proj(low))
    state, outputs = x.new_zeros(m.inner, m.state_width), []
    for t in range(len(x)):
        decay = torch.exp(delta[t][:, None] * -m.A_log.exp())
        state = decay * state + (delta[t] * u[t])[:, None] * b[t]
        outputs.append(state @ c[t] + m.D * u[t])
    return m.out_proj(torch.stack(outputs) * F.silu(z))


def mamba2(m: Any, x: Tensor) -> Tensor:
    z, u, dt = m.in_proj(x).split([m.inner, m.inner + 2 * m.state_width, m.num_heads], -1)
    u, b, c = F.silu(_short(m.conv, u)).split([m.inner, m.state_width, m.state_width], -1)
    u, dt = _by_head(u, m), F.softplus(dt + m.dt_bias)
    state, outputs = x.new_zeros(m.num_heads, m.head_dim, m.state_width), []
    for t in range(len(x)):
        decay = torch.exp(-m.A_log.exp() * dt[t])
        state = decay[:, None, None] * state + (dt[t][:, None] * u[t])[..., None] * b[t]
        outputs.append(state @ c[t] + m.D[:, None] * u[t])
    return m.out_proj(_rms(torch.stack(outputs).flatten(1) * F.silu(z), m.norm))


def _before(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def _rwkv(m: Any, inputs: dict[str, Tensor], log_rate: Tensor) -> Tensor:
    r, k, v = (_by_head(p(inputs[n]), m) for p, n in ((m.receptance, "r"), (m.key, "k"), (m.value, "v")))
    decay = _by_head(torch.exp(-torch.exp(log_rate)), m)
    state, outputs = log_rate.new_zeros(m.num_heads, m.head_dim, m.head_dim), []
    for t in range(len(r)):
        new = k[t][:, :, None] * v[t][:, None]
        outputs.append(torch.einsum("hkv,hk->hv", state + m.bonus[:, :, None] * new, r[t]))
        state = decay[t][:, :, None] * state + new
    heads = torch.stack(outputs) / m.divisor
    centred = heads - heads.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + m.norm.eps).sqrt()).flatten(1)
    return m.out_proj((normed * m.norm.weight + m.norm.bias) * F.silu(m.gate(inputs["g"])))


def rwkv5_time_mixer(m: Any, x: Tensor) -> Tensor:
    inputs = {name: x * m.mixes[name] + _before(x) * (1 - m.mixes[name]) for name in "kvrg"}
    return _rwkv(m, inputs, m.decay.expand_as(x))


def rwkv6_time_mixer(m: Any, x: Tensor) -> Tensor:
    change = _before(x) - x
    low = torch.tanh((x + change * m.base_mix) @ m.mix_down).view(len(x), 5, -1)
    inputs = {name: x + change * (m.mixes[i] + low[:, i] @ m.mix_up[i]) for i, name in enumerate("wkvrg")}
    return _rwkv(m, inputs, m.decay + torch.tanh(inputs["w"] @ m.decay_down) @ m.decay_up)


def rwkv7_time_mixer(m: Any, x: Tensor, first: Tensor | None = None) -> Tensor:
    """``first``: the values of the lowest time mixer, ``[T, D]``; None where this one is the lowest."""
    r, w, k, v, a, g = (x + (_before(x) - x) * mix for mix in m.mixes)
    log_decay = -math.exp(-0.5) * torch.sigmoid(m.decay.bias + torch.tanh(w @ m.decay.down) @ m.decay.up)
    rate = torch.sigmoid(m.rate.bias + a @ m.rate.down @ m.rate.up)
    gate = torch.sigmoid(g @ m.gate.down) @ m.gate.up
    value = m.value(v)
    if first is not None:
        share = torch.sigmoid(m.value_share.bias + v @ m.value_share.down @ m.value_share.up)
        value = value + (first - value) * share
    key = m.key(k)
    removal = _by_head(key * m.removal_scale, m)
    removal = removal / removal.norm(dim=-1, keepdim=True)
    key = key * (1 + (rate - 1) * m.rate_scale)
    r, key, value, rate, decay = (_by_head(y, m) for y in (m.receptance(r), key, value, rate, log_decay.exp()))
    state, outputs = x.new_zeros(m.num_heads, m.head_dim, m.head_dim), []
    for t in range(len(x)):
        held = torch.einsum("hkv,hk->hv", state, removal[t])
        state = decay[t][:, :, None] * state - (removal[t] * rate[t])[:, :, None] * held[:, None]
        state = state + key[t][:, :, None] * value[t][:, None]
        outputs.append(torch.einsum("hkv,hk->hv", state, r[t]))
    heads = torch.stack(outputs)
    centred = heads - heads.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-5 * m.head_dim).sqrt()).flatten(1)
    own = (r * m.bonus * key).sum(-1, keepdim=True) * value
    return m.out_proj((normed * m.norm.weight + m.norm.bias + own.flatten(1)) * gate)


def rwkv7_channel_mixer(m: Any, x: Tensor) -> Tensor:
    return m.value(torch.relu(m.key(x + (_before(x) - x) * m.key_mix)) ** 2)


def rwkv_channel_mixer(m: Any, x: Tensor) -> Tensor:
    def mixed(mix: Tensor) -> Tensor:
        return x * mix + _before(x) * (1 - mix)

    units = torch.relu(m.key(mixed(m.key_mix))) ** 2
    return torch.sigmoid(m.receptance(mixed(m.receptance_mix))) * m.value(units)


def _tanh_gelu(u: Tensor) -> Tensor:
    return 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def mlp(m: Any, x: Tensor) -> Tensor:
    return m.down_proj(_tanh_gelu(m.up_proj(x)))


def swiglu(m: Any, x: Tensor) -> Tensor:
    gate = m.gate_proj(x)
    return m.down_proj(gate * torch.sigmoid(gate) * m.up_proj(x))


def moe_mlp(m: Any, x: Tensor) -> Tensor:
    units = m.up_proj(x) * _tanh_gelu(m.gate_proj(x))
    outputs = m.down_proj(units).view(len(x), -1, m.num_experts)
    return torch.einsum("tde,te->td", outputs, _router(m.router(x), m.top_k, m.router_kind))


TWINS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "attention": attention,
    "mh-attention": attention,
    "grouped-query-attention": attention,
    "sliding-attention": attention,
    "mh-sliding-attention": attention,
    "linear-attention": linear_attention,
    "mh-linear-attention": linear_attention,
    "gated-linear-attention": gated_linear_attention,
    "mh-gated-linear-attention": gated_linear_attention,
    "delta-net": delta_net,
    "gated-delta-net": delta_net,
    "kimi-delta-attention": kimi_delta_attention,
    "hyena": hyena,
    "mh-hyena": mh_hyena,
    "hyena-experts": hyena_experts,
    "short-gated-convolution": short_gated_convolution,
    "mamba": mamba,
    "mamba-2": mamba2,
    "rwkv5-time-mixer": rwkv5_time_mixer,
    "rwkv6-time-mixer": rwkv6_time_mixer,
    "rwkv5-channel-mixer": rwkv_channel_mixer,
    "rwkv6-channel-mixer": rwkv_channel_mixer,
    "rwkv7-time-mixer": rwkv7_time_mixer,
    "rwkv7-channel-mixer": rwkv7_channel_mixer,
    "mlp": mlp,
    "swiglu": swiglu,
    "moe-mlp": moe_mlp,
}
