"""The selective scan as two Triton kernels; ``scan_triton`` launches them.

A program owns one batch element and a group of channels. It walks the sequence in tiles of LANES * 8 steps and, in each
tile, its channels one by one; so B and C are read once per tile for the whole group, and the gradients of B and C are
summed over the group in registers. A tile of one channel is [N, LANES] times 8 steps: a thread runs the recurrence over
its own 8 consecutive steps, and what goes from thread to thread is one affine map per 8 steps,

    h after the steps = decay * (h before them) + inflow,

combined by an associative scan over the lanes. So there is one exponential per step and state in either direction, the
backward pass needs no shifted copy of the decays, and time is parallel where the batch is small. The gradient that
flows back obeys the same kind of map with the same decay,

    x before = decay * (x after) + what the steps' outputs add,          x[t] = exp(delta[t] A) (C[t] gy[t] + x[t+1]).

From tile to tile the state passes through global memory (8 bytes per channel and state, once per tile). All sums over
programs leave as parts that the caller adds, so results do not depend on the order in which programs run.

Sequences are read along contiguous time; everything is computed in float32, whatever the tensors' dtype.
Shapes: N state size (padded to a power of two), L time steps; gy is the gradient of y, the output before the gate.
"""

# in Triton a tuple grows only by a sum, and its length is part of its type
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

STEPS = tl.constexpr(8)
"""Consecutive steps of one thread: 16 bytes of bfloat16, one load."""
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _then(decay, inflow, next_decay, next_inflow):
    """The affine map of a stretch of time after that of the stretch before it."""
    return decay * next_decay, next_decay * inflow + next_inflow


@triton.jit
def _split(x, ROWS: tl.constexpr, LANES: tl.constexpr):
    """[ROWS, LANES, 8] → 8 tensors [ROWS, LANES], in the order of time; moves no data between threads."""
    even, odd = tl.split(tl.reshape(x, [ROWS, LANES, 4, 2]))
    steps_04, steps_26 = tl.split(tl.reshape(even, [ROWS, LANES, 2, 2]))
    steps_15, steps_37 = tl.split(tl.reshape(odd, [ROWS, LANES, 2, 2]))
    step_0, step_4 = tl.split(steps_04)
    step_2, step_6 = tl.split(steps_26)
    step_1, step_5 = tl.split(steps_15)
    step_3, step_7 = tl.split(steps_37)
    return step_0, step_1, step_2, step_3, step_4, step_5, step_6, step_7


@triton.jit
def _join(x, ROWS: tl.constexpr, LANES: tl.constexpr):
    """8 tensors [ROWS, LANES] → [ROWS, LANES, 8]: the inverse of ``_split``."""
    even = tl.reshape(tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6])), [ROWS, LANES, 4])
    odd = tl.reshape(tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7])), [ROWS, LANES, 4])
    return tl.reshape(tl.join(even, odd), [ROWS, LANES, 8])


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to a rounding or two also where exp(x) vanishes beside 1."""
    small = tl.exp(-tl.abs(x))
    one_more = 1.0 + small
    # log1p: what rounding took from 1 + small is given back by the quotient
    rounded = one_more - 1.0
    log1p = tl.where(rounded == 0.0, small, tl.log(one_more) * (small / tl.where(rounded == 0.0, 1.0, rounded)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def _time_step(delta, bias, channel, inside, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr):
    """The time step before and after softplus; 0 outside, where the state is then left alone."""
    raw = delta
    if HAS_BIAS:
        raw += tl.load(bias + channel).to(tl.float32)
    step = raw
    if SOFTPLUS:
        step = softplus(raw)
    return raw, tl.where(inside, step, 0.0)


@triton.jit
def forward_kernel(
    u, delta, z, A, B, C, D, bias, initial,
    out, last, states,
    channels, steps, state_size,
    u_batch, u_channel, delta_batch, delta_channel, z_batch, z_channel,
    B_batch, B_state, C_batch, C_state,
    HAS_Z: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, SAVE: tl.constexpr,
    GROUP: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """out [B, D, L]; last [B, N, D]; states [B, tiles, N, D] before each tile, if SAVE. A and initial contiguous."""
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * GROUP
    T: tl.constexpr = LANES * STEPS
    tiles = tl.cdiv(steps, T)
    n = tl.arange(0, N)
    real = n < state_size
    lane = tl.arange(0, LANES)[None, :]
    before = tl.broadcast_to(tl.maximum(lane - 1, 0), [N, LANES])
    in_tile = tl.arange(0, T)
    in_cube = tl.arange(0, LANES)[None, :, None] * STEPS + tl.arange(0, STEPS)[None, None, :]

    for tile in range(tiles):
        start = tile * T
        time = start + in_tile
        inside = time < steps
        cube = real[:, None, None] & (start + in_cube < steps)
        at_B = B + batch * B_batch + n[:, None, None] * B_state + (start + in_cube)
        at_C = C + batch * C_batch + n[:, None, None] * C_state + (start + in_cube)
        B_steps = _split(tl.load(at_B, mask=cube, other=0.0).to(tl.float32), N, LANES)
        C_steps = _split(tl.load(at_C, mask=cube, other=0.0).to(tl.float32), N, LANES)
        # the states that other threads stored in the tile before are read now
        tl.debug_barrier()
        for channel in range(first, tl.minimum(first + GROUP, channels)):
            x = tl.load(u + batch * u_batch + channel * u_channel + time, mask=inside, other=0.0).to(tl.float32)
            at_delta = delta + batch * delta_batch + channel * delta_channel + time
            step = tl.load(at_delta, mask=inside, other=0.0).to(tl.float32)
            _, step = _time_step(step, bias, channel, inside, HAS_BIAS, SOFTPLUS)
            at_state = (batch * state_size + n) * channels + channel
            if tile > 0:
                state = tl.load(last + at_state, mask=real, other=0.0)
            elif HAS_INITIAL:
                state = tl.load(initial + at_state, mask=real, other=0.0).to(tl.float32)
            else:
                state = tl.zeros([N], tl.float32)
            if SAVE:
                at_saved = ((batch * tiles + tile) * state_size + n) * channels + channel
                tl.store(states + at_saved, state, mask=real)
            rate = tl.load(A + channel * state_size + n, mask=real, other=0.0).to(tl.float32)[:, None] * _LOG2_E

            step_steps = _split(tl.reshape(step, [1, LANES, STEPS]), 1, LANES)
            inflow_steps = _split(tl.reshape(step * x, [1, LANES, STEPS]), 1, LANES)
            decays = ()
            inflow = tl.zeros([N, LANES], tl.float32)
            total_step = tl.zeros([1, LANES], tl.float32)
            for j in tl.static_range(STEPS):
                decay = tl.exp2(rate * step_steps[j])
                inflow = decay * inflow + inflow_steps[j] * B_steps[j]
                decays = decays + (decay,)
                total_step += step_steps[j]
            decay, inflow = tl.associative_scan((tl.exp2(rate * total_step), inflow), 1, _then)
            ends = decay * state[:, None] + inflow
            at_last = (last + at_state)[:, None] + tl.zeros([N, LANES], tl.int32)
            tl.store(at_last, ends, mask=real[:, None] & (lane == LANES - 1))

            h = tl.where(lane == 0, state[:, None], tl.gather(ends, before, 1))
            read = ()
            for j in tl.static_range(STEPS):
                h = decays[j] * h + inflow_steps[j] * B_steps[j]
                read = read + (h * C_steps[j],)
            y = tl.reshape(tl.sum(_join(read, N, LANES), 0), [T])
            if HAS_D:
                y += tl.load(D + channel).to(tl.float32) * x
            if HAS_Z:
                gate = tl.load(z + batch * z_batch + channel * z_channel + time, mask=inside, other=0.0).to(tl.float32)
                y *= gate * tl.sigmoid(gate)
            at_out = (batch * channels + channel) * steps + time
            tl.store(out + at_out, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    u, delta, z, A, B, C, D, bias,
    states, grad_out,
    grad_u, grad_delta, grad_z, grad_state, parts_A, parts_B, parts_C, parts_D, parts_bias,
    channels, steps, state_size,
    u_batch, u_channel, delta_batch, delta_channel, z_batch, z_channel,
    B_batch, B_state, C_batch, C_state, out_batch, out_channel,
    HAS_Z: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    GROUP: tl.constexpr, N: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """grad_state [B, N, D] holds the last state's gradient before and the initial state's after.

    grad_u, grad_delta, grad_z are [B, D, L]. Parts: A [B, tiles, N, D], B and C [B, groups, N, L], D and bias
    [B, tiles, D].
    """
    batch = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * GROUP
    T: tl.constexpr = LANES * STEPS
    tiles = tl.cdiv(steps, T)
    n = tl.arange(0, N)
    real = n < state_size
    lane = tl.arange(0, LANES)[None, :]
    before = tl.broadcast_to(tl.maximum(lane - 1, 0), [N, LANES])
    after = tl.broadcast_to(tl.minimum(lane + 1, LANES - 1), [N, LANES])
    in_tile = tl.arange(0, T)
    in_cube = tl.arange(0, LANES)[None, :, None] * STEPS + tl.arange(0, STEPS)[None, None, :]

    for back in range(tiles):
        tile = tiles - 1 - back
        start = tile * T
        time = start + in_tile
        inside = time < steps
        cube = real[:, None, None] & (start + in_cube < steps)
        at_B = B + batch * B_batch + n[:, None, None] * B_state + (start + in_cube)
        at_C = C + batch * C_batch + n[:, None, None] * C_state + (start + in_cube)
        B_steps = _split(tl.load(at_B, mask=cube, other=0.0).to(tl.float32), N, LANES)
        C_steps = _split(tl.load(at_C, mask=cube, other=0.0).to(tl.float32), N, LANES)
        grad_B = tl.zeros([N, LANES, STEPS], tl.float32)
        grad_C = tl.zeros([N, LANES, STEPS], tl.float32)
        # the gradients that other threads stored in the tile after are read now
        tl.debug_barrier()
        for channel in range(first, tl.minimum(first + GROUP, channels)):
            x = tl.load(u + batch * u_batch + channel * u_channel + time, mask=inside, other=0.0).to(tl.float32)
            at_delta = delta + batch * delta_batch + channel * delta_channel + time
            raw = tl.load(at_delta, mask=inside, other=0.0).to(tl.float32)
            raw, step = _time_step(raw, bias, channel, inside, HAS_BIAS, SOFTPLUS)
            at_grad_out = grad_out + batch * out_batch + channel * out_channel + time
            grad_y = tl.load(at_grad_out, mask=inside, other=0.0).to(tl.float32)
            at_own = (batch * channels + channel) * steps + time
            if HAS_Z:
                gate = tl.load(z + batch * z_batch + channel * z_channel + time, mask=inside, other=0.0).to(tl.float32)
                open_ = tl.sigmoid(gate)
                # of z, but for the factor y
                grad_gate = grad_y * open_ * (1.0 + gate * (1.0 - open_))
                grad_y *= gate * open_
            at_state = (batch * state_size + n) * channels + channel
            at_part = (batch * tiles + tile) * channels + channel
            at_saved = ((batch * tiles + tile) * state_size + n) * channels + channel
            state = tl.load(states + at_saved, mask=real, other=0.0)
            carry = tl.load(grad_state + at_state, mask=real, other=0.0)
            rate = tl.load(A + channel * state_size + n, mask=real, other=0.0).to(tl.float32)[:, None]

            step_steps = _split(tl.reshape(step, [1, LANES, STEPS]), 1, LANES)
            inflow_steps = _split(tl.reshape(step * x, [1, LANES, STEPS]), 1, LANES)
            grad_y_steps = _split(tl.reshape(grad_y, [1, LANES, STEPS]), 1, LANES)
            decays = ()
            inflow = tl.zeros([N, LANES], tl.float32)
            total_step = tl.zeros([1, LANES], tl.float32)
            for j in tl.static_range(STEPS):
                decay = tl.exp2(rate * _LOG2_E * step_steps[j])
                inflow = decay * inflow + inflow_steps[j] * B_steps[j]
                decays = decays + (decay,)
                total_step += step_steps[j]
            outflow = tl.zeros([N, LANES], tl.float32)
            for j in tl.static_range(STEPS - 1, -1, -1):
                outflow = decays[j] * (C_steps[j] * grad_y_steps[j] + outflow)
            total = tl.exp2(rate * _LOG2_E * total_step)
            decay, inflow = tl.associative_scan((total, inflow), 1, _then)
            h = tl.where(lane == 0, state[:, None], tl.gather(decay * state[:, None] + inflow, before, 1))
            decay, outflow = tl.associative_scan((total, outflow), 1, _then, reverse=True)
            starts = decay * carry[:, None] + outflow
            flow = tl.where(lane == LANES - 1, carry[:, None], tl.gather(starts, after, 1))
            at_carry = (grad_state + at_state)[:, None] + tl.zeros([N, LANES], tl.int32)
            tl.store(at_carry, starts, mask=real[:, None] & (lane == 0))

            olds = ()
            reads = ()
            grads_C = ()
            for j in tl.static_range(STEPS):
                olds = olds + (h,)
                h = decays[j] * h + inflow_steps[j] * B_steps[j]
                grads_C = grads_C + (h * grad_y_steps[j],)
                if HAS_Z:
                    reads = reads + (h * C_steps[j],)
            # from the last step to the first, each put in front
            grads_B = ()
            grads_inflow = ()
            grads_step = ()
            grad_rate = tl.zeros([N, LANES], tl.float32)
            for j in tl.static_range(STEPS - 1, -1, -1):
                grad_h = C_steps[j] * grad_y_steps[j] + flow
                flow = decays[j] * grad_h
                # of the exponent step * rate
                exponent = flow * olds[j]
                grad_rate += exponent * step_steps[j]
                grads_step = (exponent * rate,) + grads_step
                grads_inflow = (grad_h * B_steps[j],) + grads_inflow
                grads_B = (grad_h * inflow_steps[j],) + grads_B
            grad_B += _join(grads_B, N, LANES)
            grad_C += _join(grads_C, N, LANES)
            tl.store(parts_A + at_saved, tl.sum(grad_rate, 1), mask=real)
            grad_inflow = tl.reshape(tl.sum(_join(grads_inflow, N, LANES), 0), [T])
            grad_step = tl.reshape(tl.sum(_join(grads_step, N, LANES), 0), [T]) + grad_inflow * x
            grad_x = grad_inflow * step
            if HAS_D:
                skip = tl.load(D + channel).to(tl.float32)
                grad_x += skip * grad_y
                tl.store(parts_D + at_part, tl.sum(grad_y * x, 0))
            tl.store(grad_u + at_own, grad_x.to(grad_u.dtype.element_ty), mask=inside)
            if SOFTPLUS:
                grad_step *= tl.sigmoid(raw)
            tl.store(grad_delta + at_own, grad_step.to(grad_delta.dtype.element_ty), mask=inside)
            if HAS_BIAS:
                tl.store(parts_bias + at_part, tl.sum(tl.where(inside, grad_step, 0.0), 0))
            if HAS_Z:
                y = tl.reshape(tl.sum(_join(reads, N, LANES), 0), [T])
                if HAS_D:
                    y += tl.load(D + channel).to(tl.float32) * x
                tl.store(grad_z + at_own, (grad_gate * y).to(grad_z.dtype.element_ty), mask=inside)
        at_group = (batch * tl.num_programs(0) + tl.program_id(0)) * state_size
        at_sum = (at_group + n[:, None, None]) * steps + (start + in_cube)
        tl.store(parts_B + at_sum, grad_B, mask=cube)
        tl.store(parts_C + at_sum, grad_C, mask=cube)
