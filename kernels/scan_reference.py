"""The definition of the selective scan, as a loop over time that anyone can check by eye.

Mamba (Gu and Dao, 2023), section 3.2, with the discretization that the released code uses
(zero-order hold for A, Euler for B), for every batch b and channel d:

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * u[t]        h[t]: [N]
    y[t] = sum_n C[t, n] * h[t, n] + D * u[t]
    out[t] = y[t] * silu(z[t])

Computed in the dtype of the inputs: float64 in, float64 throughout. Every other path is tested against this file.
Shapes: B batch, D channels, L time steps, N state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.kernels.scan_contract import CHUNK, Gradients, Inputs, Outputs


def scan(inputs: Inputs) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loop; differentiable by autograd.

    Returns:
        out [B, D, L], last state [B, N, D], and the states before every ``CHUNK``-th step, each [B, N, D].
    """
    delta = inputs.delta
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias[:, None]
    if inputs.delta_softplus:
        delta = F.softplus(delta)
    A = inputs.A.T  # [N, D]
    state = inputs.first_state()
    outputs, boundaries = [], []
    steps = zip(inputs.u.unbind(2), delta.unbind(2), inputs.B.unbind(2), inputs.C.unbind(2))
    for t, (u_t, delta_t, B_t, C_t) in enumerate(steps):
        if t % CHUNK == 0:
            boundaries.append(state)
        decay = torch.exp(delta_t[:, None, :] * A)
        state = decay * state + (delta_t * u_t)[:, None, :] * B_t[:, :, None]
        outputs.append((state * C_t[:, :, None]).sum(1))
    out = torch.stack(outputs, dim=2)
    if inputs.D is not None:
        out = out + inputs.D[:, None] * inputs.u
    if inputs.z is not None:
        out = out * F.silu(inputs.z)
    return out, state, boundaries


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """One call of the scan, in the form that all paths share."""
    with torch.no_grad():
        out, last_state, boundaries = scan(inputs)
    states = torch.stack(boundaries, dim=1) if save_states else out.new_empty(0)
    return Outputs(out, last_state, states)


def backward(inputs: Inputs, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None) -> Gradients:
    """Gradients by running the loop again under autograd; ``states`` is not needed."""
    # inside an operator that runs under a dispatch mode (the FLOP counter) torch switches autograd off
    autograd_on = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with autograd_on, torch.enable_grad():
        leaves = inputs.map(lambda tensor: tensor.detach().requires_grad_())
        out, last_state, _ = scan(leaves)
        present = leaves.tensors()
        roots, grads = [out], [grad_out]
        if grad_last_state is not None:
            roots.append(last_state)
            grads.append(grad_last_state)
        found = torch.autograd.grad(roots, list(present.values()), grads)
    return Gradients(**dict(zip(present, found)))
