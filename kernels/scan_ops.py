"""The selective scan as two operators that torch knows: forward and backward.

Being operators, they run on the meta device and under FlopCounterMode, which sees one call and one formula whichever
path computes it. FLOPs are counted per operation written in the formulas below; an exponential, a division and a
logarithm count as 1 each, as an addition does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from manticore.kernels.scan_contract import Gradients, Inputs
from manticore.kernels.scan_dispatch import PATHS, choose

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, bool delta_softplus"
)
_library = torch.library.Library("manticore", "DEF")
_library.define(f"selective_scan({_INPUTS}, bool save_states) -> (Tensor out, Tensor last_state, Tensor states)")
_library.define(
    f"selective_scan_backward({_INPUTS}, Tensor states, Tensor grad_out, Tensor? grad_last_state) -> Tensor[]"
)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, save_states = arguments
    inputs = Inputs(*tensors)
    path = PATHS[choose(inputs.u.device, inputs.u.dtype)].load()
    with torch.autocast(inputs.u.device.type, enabled=False):
        return path.forward(inputs, save_states)


def _backward(*arguments: Any) -> list[Tensor]:
    *tensors, states, grad_out, grad_last_state = arguments
    inputs = Inputs(*tensors)
    path = PATHS[choose(inputs.u.device, inputs.u.dtype)].load()
    with torch.autocast(inputs.u.device.type, enabled=False):
        gradients = path.backward(inputs, states, grad_out, grad_last_state)
    return [getattr(gradients, name) for name in inputs.tensors()]


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, save_states = arguments
    inputs = Inputs(*tensors)
    batch, channels, _ = inputs.u.shape
    state_shape = (inputs.A.shape[1], channels)
    states_shape = (batch, inputs.num_chunks, *state_shape) if save_states else (0,)
    return (
        torch.empty_like(inputs.u),
        inputs.u.new_empty(batch, *state_shape),
        inputs.u.new_empty(states_shape),
    )


def _fake_backward(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in Inputs(*arguments[:-3]).tensors().values()]


_library.impl("selective_scan", _forward, "CompositeExplicitAutograd")
_library.impl("selective_scan_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("manticore::selective_scan", _fake_forward, lib=_library)
torch.library.register_fake("manticore::selective_scan_backward", _fake_backward, lib=_library)


def run_forward(inputs: Inputs, save_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    """out [B, D, L], last state [B, N, D], saved states."""
    return torch.ops.manticore.selective_scan(*_flat(inputs), save_states)


def run_backward(inputs: Inputs, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None) -> Gradients:
    """A gradient for every tensor of the inputs."""
    found = torch.ops.manticore.selective_scan_backward(*_flat(inputs), states, grad_out, grad_last_state)
    return Gradients(**dict(zip(inputs.tensors(), found)))


def _flat(inputs: Inputs) -> tuple[Any, ...]:
    return (
        *(inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.z, inputs.delta_bias),
        *(inputs.initial_state, inputs.delta_softplus),
    )


@register_flop_formula(torch.ops.manticore.selective_scan)
def forward_flops(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, *rest, **kwargs) -> int:
    """FLOPs of one forward pass, from shapes.

    Per batch, channel, step and state 7: the exponent delta * A, its exp, decay * h, inflow * B, their sum, and the
    multiply-add with C. Per batch, channel and step: 1 for delta * u, 2 for D, 1 for the bias, 3 for softplus
    (exp, add, log), 5 for the gate (exp, add, divide, times z, times y).
    """
    batch, channels, steps = u
    per_step = 1 + 2 * (D is not None) + (delta_bias is not None) + 3 * delta_softplus + 5 * (z is not None)
    return batch * channels * steps * (7 * A[1] + per_step)


@register_flop_formula(torch.ops.manticore.selective_scan_backward)
def backward_flops(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, *rest, **kwargs) -> int:
    """FLOPs of one backward pass, from shapes; the recomputation of the states is work done, so it counts.

    Per batch, channel, step and state 20: 5 to recompute h; 3 for g (C * gy, decay * g, their sum); 2 each for the
    sums that give the gradients of C, of B and of the inflow; 2 for the gradient of the exponent (g * decay is shared
    with the recurrence), 2 each for its sums into delta and A; and, with a gate, 2 to recompute y.
    Per batch, channel and step: 1 for delta * u and 4 for the gradients of u and delta; 4 for D (and 2 to recompute
    its part of y with a gate); 2 for the bias; 6 for softplus and its derivative; 10 for the gate and its derivative.
    """
    batch, channels, steps = u
    gated = z is not None
    per_state = 20 + 2 * gated
    per_step = 5 + 2 * (delta_bias is not None) + 6 * delta_softplus + 10 * gated
    if D is not None:
        per_step += 4 + 2 * gated
    return batch * channels * steps * (per_state * A[1] + per_step)
