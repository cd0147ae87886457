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

from manticore.kernels.scan_contract import Gradients, Inputs, Outputs, compute_dtype
from manticore.kernels.scan_dispatch import PATHS, Entry

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, bool delta_softplus"
)
_library = torch.library.Library("manticore", "DEF")
_library.define(
    f"selective_scan({_INPUTS}, str path, bool save_states) -> (Tensor out, Tensor last_state, Tensor states)"
)
_library.define(
    f"selective_scan_backward({_INPUTS}, str path, Tensor states, Tensor grad_out, Tensor? grad_last_state) -> Tensor[]"
)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, name, save_states = arguments
    inputs = Inputs(*tensors)
    entry = PATHS[name]
    with torch.autocast(inputs.u.device.type, enabled=False):
        out, last_state, states = entry.load().forward(_as_taken(inputs, entry), save_states)
    return out.to(inputs.u.dtype), last_state, states


def _backward(*arguments: Any) -> list[Tensor]:
    *tensors, name, states, grad_out, grad_last_state = arguments
    inputs = Inputs(*tensors)
    entry = PATHS[name]
    taken = _as_taken(inputs, entry)
    with torch.autocast(inputs.u.device.type, enabled=False):
        gradients = entry.load().backward(taken, states, grad_out.to(taken.u.dtype), grad_last_state)
    return [getattr(gradients, name).to(tensor.dtype) for name, tensor in inputs.tensors().items()]


def _as_taken(inputs: Inputs, entry: Entry) -> Inputs:
    """The inputs in the dtype that the path computes in, or as they are if it reads any."""
    if entry.reads_any_dtype:
        return inputs
    dtype = compute_dtype(inputs.u.dtype)
    return inputs.map(lambda tensor: tensor.to(dtype))


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, name, save_states = arguments
    inputs = Inputs(*tensors)
    batch, channels, _ = inputs.u.shape
    computed = inputs.u.new_empty(0, dtype=compute_dtype(inputs.u.dtype))
    states_shape = PATHS[name].states_shape(inputs) if save_states else (0,)
    return (
        torch.empty_like(inputs.u),
        computed.new_empty(batch, inputs.A.shape[1], channels),
        computed.new_empty(states_shape),
    )


def _fake_backward(*arguments: Any) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in Inputs(*arguments[:-4]).tensors().values()]


_library.impl("selective_scan", _forward, "CompositeExplicitAutograd")
_library.impl("selective_scan_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("manticore::selective_scan", _fake_forward, lib=_library)
torch.library.register_fake("manticore::selective_scan_backward", _fake_backward, lib=_library)


def run_forward(inputs: Inputs, path: str, save_states: bool) -> Outputs:
    """One forward pass by the named path, of inputs in any dtypes; ``out`` is in the dtype of ``u``."""
    return Outputs(*torch.ops.manticore.selective_scan(*_flat(inputs), path, save_states))


def run_backward(
    inputs: Inputs, path: str, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None
) -> Gradients:
    """A gradient for every tensor of the inputs, in its dtype, by the path that ran the forward pass."""
    found = torch.ops.manticore.selective_scan_backward(*_flat(inputs), path, states, grad_out, grad_last_state)
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
