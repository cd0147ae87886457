"""The selective scan of Mamba with its gradients, in the layout of mamba-ssm, on any device and without a build.

``selective_scan`` is the one entry. ``scan_reference`` defines what it computes; ``scan_dispatch`` decides which path
computes it. Shapes: B batch, D channels, L time steps, N state size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manticore.errors import ManticoreError
from manticore.kernels.scan_contract import Inputs, compute_dtype
from manticore.kernels.scan_dispatch import choose
from manticore.kernels.scan_ops import run_backward, run_forward


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run ``h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t]`` and read ``C[t] h[t]`` off it.

    Computed in float64 if ``u`` is float64, else in float32, whatever the dtypes of the tensors; on CUDA they are read
    as they are, without copies in float32. Differentiable once in every tensor, gradients in the tensors' dtypes.

    Args:
        u: [B, D, L].
        delta: [B, D, L], the time step.
        A: [D, N], real.
        B: [B, N, L].
        C: [B, N, L].
        D: [D], the skip connection.
        z: [B, D, L], the gate: the output is multiplied by silu(z).
        delta_bias: [D], added to ``delta``.
        delta_softplus: apply softplus to ``delta`` (after the bias).
        initial_state: [B, D, N], the state that an earlier call returned; None is zeros.
        return_last_state: also return the state after the last step.

    Returns:
        out [B, D, L] in the dtype of ``u``; with ``return_last_state`` also the state [B, D, N] in the dtype that the
        scan was computed in.

    Raises:
        ManticoreError: shapes, devices or dtypes do not fit together.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if initial_state is not None:
        initial_state = initial_state.transpose(1, 2)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    out, last_state = _scan(*tensors, delta_softplus)
    return (out, last_state.transpose(1, 2)) if return_last_state else out


def _scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    """``out`` [B, D, L] and the last state [B, N, D] of the fields of :class:`Inputs`."""
    differentiated = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
    out, last_state, _ = _SelectiveScan.apply(*arguments, differentiated)
    return out, last_state


class _SelectiveScan(torch.autograd.Function):
    """Ties the two operators together; saves the inputs and one state per chunk if a gradient will be asked for."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *fields, save_states = arguments
        inputs = Inputs(*fields)
        return run_forward(inputs, _path(inputs), save_states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.delta_softplus, save_states = inputs
        states = output[2]
        ctx.mark_non_differentiable(states)
        if save_states:
            ctx.save_for_backward(states, *tensors)
            ctx.path = _path(Inputs(*(*tensors, ctx.delta_softplus)))
            ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _: None) -> tuple[Any, ...]:
        states, *tensors = ctx.saved_tensors
        inputs = Inputs(*(*tensors, ctx.delta_softplus))
        if grad_out is None:
            grad_out = torch.zeros_like(inputs.u)
        gradients = run_backward(inputs, ctx.path, states, grad_out, grad_last_state)
        return (
            *(gradients.u, gradients.delta, gradients.A, gradients.B, gradients.C, gradients.D, gradients.z),
            *(gradients.delta_bias, gradients.initial_state, None, None),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, tuple[int, int, None]]:
        """One scan per element of the mapped dimension: no layout of the kernels has both a B and an A of its own."""
        outputs = [
            _scan(*(x if dim is None else x.select(dim, index) for x, dim in zip(arguments[:-1], in_dims)))
            for index in range(info.batch_size)
        ]
        out, last_state = (torch.stack(each) for each in zip(*outputs))
        return (out, last_state, out.new_empty(0)), (0, 0, None)


def _path(inputs: Inputs) -> str:
    return choose(inputs.u.device, compute_dtype(inputs.u.dtype), inputs)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Refuse what would broadcast by accident or crash in a kernel."""
    if u.dim() != 3 or u.numel() == 0:
        raise _problem("u", "shape", tuple(u.shape), "[batch, channels, steps], none of them 0")
    if A.dim() != 2 or A.numel() == 0:
        raise _problem("A", "shape", tuple(A.shape), "[channels, state size], none of them 0")
    batch, channels, steps = u.shape
    state_size = A.shape[1]
    expected = {
        "delta": (delta, (batch, channels, steps)),
        "A": (A, (channels, state_size)),
        "B": (B, (batch, state_size, steps)),
        "C": (C, (batch, state_size, steps)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, steps)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, state_size)),
    }
    for name, (tensor, shape) in {"u": (u, tuple(u.shape)), **expected}.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise _problem(name, "shape", tuple(tensor.shape), shape)
        if tensor.device != u.device:
            raise _problem(name, "device", tensor.device, f"{u.device}, where u is")
        if not tensor.is_floating_point():
            raise _problem(name, "dtype", tensor.dtype, "a real floating-point dtype")


def _problem(name: str, what: str, got: object, expected: object) -> ManticoreError:
    return ManticoreError(
        f"selective_scan: {name} has the wrong {what} (got {got}, expected {expected}). "
        f"Fix: pass tensors in the layout of mamba-ssm, all on one device"
    )
