"""One step of the selective scan as a Triton kernel; ``state_update`` launches it and defines what it computes.

A program owns ``CHANNELS`` channels of one batch element and reads and writes their states once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from manticore.kernels.scan_triton_kernels import softplus

CHANNELS = 16


@triton.jit
def update_kernel(
    state, x, dt, A, B, C, D, z, bias, out,
    channels, state_size,
    state_batch, state_channel, state_n, x_batch, x_channel, dt_batch, dt_channel, A_channel, A_n,
    B_batch, B_n, C_batch, C_n, z_batch, z_channel,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, N: tl.constexpr,
    GROUP: tl.constexpr = CHANNELS,
):  # fmt: skip
    """state [B, D, N], changed in place; x, dt, z [B, D]; out [B, D]; D and bias [D] contiguous."""
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    n = tl.arange(0, N)
    there = channel < channels
    real = n < state_size
    both = there[:, None] & real[None, :]

    value = tl.load(x + batch * x_batch + channel * x_channel, mask=there, other=0.0).to(tl.float32)
    step = tl.load(dt + batch * dt_batch + channel * dt_channel, mask=there, other=0.0).to(tl.float32)
    if HAS_BIAS:
        step += tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    if SOFTPLUS:
        step = softplus(step)
    rate = tl.load(A + channel[:, None] * A_channel + n[None, :] * A_n, mask=both, other=0.0).to(tl.float32)
    inflow = tl.load(B + batch * B_batch + n * B_n, mask=real, other=0.0).to(tl.float32)
    weight = tl.load(C + batch * C_batch + n * C_n, mask=real, other=0.0).to(tl.float32)
    at_state = state + batch * state_batch + channel[:, None] * state_channel + n[None, :] * state_n
    h = tl.load(at_state, mask=both, other=0.0).to(tl.float32)
    h = tl.exp(step[:, None] * rate) * h + (step * value)[:, None] * inflow[None, :]
    tl.store(at_state, h.to(state.dtype.element_ty), mask=both)
    y = tl.sum(h * weight[None, :], 1)
    if HAS_D:
        y += tl.load(D + channel, mask=there, other=0.0).to(tl.float32) * value
    if HAS_Z:
        gate = tl.load(z + batch * z_batch + channel * z_channel, mask=there, other=0.0).to(tl.float32)
        y *= gate * tl.sigmoid(gate)
    tl.store(out + batch * channels + channel, y.to(out.dtype.element_ty), mask=there)
