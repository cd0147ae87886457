"""The selective scan in plain torch: one in-place multiply-add per step, and a closed-form backward.

The forward pass keeps only the state before each chunk of ``CHUNK`` steps. The backward pass walks the chunks from
the last to the first, recomputes a chunk's states, and runs the adjoint recurrence

    g[t] = C[t] * gy[t] + exp(delta[t+1] * A) * g[t+1]

in place; all other gradients of the chunk are then batched products of g with what was recomputed. So no tensor
of B * D * L * N elements ever exists, and time grows linearly with L (autograd through a loop of selects is
quadratic: the gradient of each select is a zero-filled copy of the whole sequence).

Shapes: B batch, D channels, L time steps, N state size, T steps of a chunk. Chunk tensors are [T, B, N, D].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.kernels.scan_contract import CHUNK, Gradients, Inputs, Outputs


class _Chunk(NamedTuple):
    """The inputs of one chunk, time first."""

    u: Tensor  # [T, B, D]
    delta: Tensor  # [T, B, D], after bias and softplus
    B: Tensor  # [T, B, N]
    C: Tensor  # [T, B, N]
    decay: Tensor  # [T, B, N, D]
    states: Tensor  # [T, B, N, D], after each step


def _time_step(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Delta before and after softplus: [B, D, L]."""
    raw = inputs.delta if inputs.delta_bias is None else inputs.delta + inputs.delta_bias[:, None]
    return raw, F.softplus(raw) if inputs.delta_softplus else raw


def _time_first(x: Tensor, span: slice) -> Tensor:
    """The steps of one chunk, [B, D, L] → [T, B, D], copied: broadcasting from strided memory is slow."""
    return x[:, :, span].permute(2, 0, 1).contiguous()


def _run_chunk(inputs: Inputs, A: Tensor, time_step: Tensor, state: Tensor, start: int) -> _Chunk:
    """Run the recurrence over one chunk, with A as [N, D], from ``state`` [B, N, D], which is left as it is."""
    span = slice(start, min(start + CHUNK, inputs.u.shape[2]))
    u, delta, B, C = (_time_first(x, span) for x in (inputs.u, time_step, inputs.B, inputs.C))
    decay = torch.exp_(delta[:, :, None, :] * A)
    states = (delta * u)[:, :, None, :] * B[:, :, :, None]
    for decay_t, state_t in zip(decay.unbind(0), states.unbind(0)):
        state = torch.addcmul(state_t, decay_t, state, out=state_t)
    return _Chunk(u, delta, B, C, decay, states)


def _read(states: Tensor, C: Tensor) -> Tensor:
    """sum_n C * h: [T, B, D]."""
    return torch.matmul(C[:, :, None, :], states)[:, :, 0]


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Run the scan chunk by chunk."""
    _, time_step = _time_step(inputs)
    A = inputs.A.T.contiguous()
    out = torch.empty_like(inputs.u)
    state = inputs.first_state()
    boundaries = []
    for start in range(0, inputs.u.shape[2], CHUNK):
        if save_states:
            boundaries.append(state)
        chunk = _run_chunk(inputs, A, time_step, state, start)
        out[:, :, start : start + CHUNK] = _read(chunk.states, chunk.C).permute(1, 2, 0)
        # a copy, so that the chunk's tensors can go
        state = chunk.states[-1].clone()
    if inputs.D is not None:
        out.addcmul_(inputs.D[:, None], inputs.u)
    if inputs.z is not None:
        out.mul_(F.silu(inputs.z))
    states = torch.stack(boundaries, dim=1) if save_states else out.new_empty(0)
    return Outputs(out, state, states)


def backward(inputs: Inputs, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None) -> Gradients:
    """Walk the chunks backwards."""
    length = inputs.u.shape[2]
    raw_time_step, time_step = _time_step(inputs)
    A = inputs.A.T.contiguous()
    # gradient with respect to y, before the gate: [B, D, L]
    grad_y = grad_out if inputs.z is None else grad_out * F.silu(inputs.z)
    y = None if inputs.z is None else torch.empty_like(inputs.u)
    grad_u, grad_delta = torch.empty_like(inputs.u), torch.empty_like(inputs.delta)
    grad_A = torch.zeros_like(A)
    grad_B, grad_C = torch.empty_like(inputs.B), torch.empty_like(inputs.C)
    # gradient that reaches a chunk's last state from the steps after it: [B, N, D]
    carry = torch.zeros_like(states[:, 0]) if grad_last_state is None else grad_last_state

    for index in reversed(range(inputs.num_chunks)):
        start = index * CHUNK
        span = slice(start, min(start + CHUNK, length))
        chunk = _run_chunk(inputs, A, time_step, states[:, index], start)
        grad_y_chunk = _time_first(grad_y, span)
        if y is not None:
            y[:, :, span] = _read(chunk.states, chunk.C).permute(1, 2, 0)

        grad_states = chunk.C[:, :, :, None] * grad_y_chunk[:, :, None, :]
        grad_states[-1] += carry
        adjoints, decays = grad_states.unbind(0), chunk.decay.unbind(0)
        for t in reversed(range(len(adjoints) - 1)):
            torch.addcmul(adjoints[t], decays[t + 1], adjoints[t + 1], out=adjoints[t])
        carry = decays[0] * adjoints[0]

        grad_C[:, :, span] = torch.matmul(chunk.states, grad_y_chunk[..., None])[..., 0].permute(1, 2, 0)
        inflow = (chunk.delta * chunk.u)[..., None]
        grad_B[:, :, span] = torch.matmul(grad_states, inflow)[..., 0].permute(1, 2, 0)
        grad_inflow = _read(grad_states, chunk.B)
        grad_u[:, :, span] = (grad_inflow * chunk.delta).permute(1, 2, 0)

        # gradient of the exponent delta * A: g[t] * exp(...) * h[t-1]; built in the memory of decay
        exponent = chunk.decay.mul_(grad_states)
        exponent[1:] *= chunk.states[:-1]
        exponent[0] *= states[:, index]
        grad_A += (exponent * chunk.delta[:, :, None, :]).sum((0, 1))
        grad_delta_chunk = (exponent * A).sum(2).addcmul_(grad_inflow, chunk.u)
        grad_delta[:, :, span] = grad_delta_chunk.permute(1, 2, 0)

    grad_D = grad_z = None
    if inputs.D is not None:
        grad_u.addcmul_(inputs.D[:, None], grad_y)
        grad_D = (grad_y * inputs.u).sum((0, 2))
    if y is not None and inputs.z is not None:
        if inputs.D is not None:
            y.addcmul_(inputs.D[:, None], inputs.u)
        gate = torch.sigmoid(inputs.z)
        # d silu(z) / dz = s + z * s * (1 - s)
        grad_z = grad_out * y * gate * (1 + inputs.z * (1 - gate))
    if inputs.delta_softplus:
        grad_delta = torch.ops.aten.softplus_backward(grad_delta, raw_time_step, 1.0, 20.0)
    return Gradients(
        u=grad_u,
        delta=grad_delta,
        A=grad_A.T,
        B=grad_B,
        C=grad_C,
        D=grad_D,
        z=grad_z,
        delta_bias=None if inputs.delta_bias is None else grad_delta.sum((0, 2)),
        initial_state=None if inputs.initial_state is None else carry,
    )
