"""One step of the selective scan on a cached state, in the layout of mamba-ssm: what decoding a token costs.

    h = exp(dt A) h + dt B x,    out = (C h + D x) silu(z)                       per batch element and channel

The definition is ``update_in_torch``; on CUDA one Triton kernel does it in a single pass over the state, and ``state``
is overwritten. The models that ``manticore.kernels.mamba`` switches keep transformers' own step: it is the same formula
in torch, on the CPU both take the same operations, and no GPU was at hand to show a gain.
Shapes: B batch, D channels, N state size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manticore.errors import ManticoreError
from manticore.kernels.scan_contract import compute_dtype
from manticore.kernels.scan_dispatch import choose


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Advance the state by one token and read the output off it.

    Computed in float64 if the state is, else in float32. Has no backward pass.

    Args:
        state: [B, D, N], overwritten with the new state, in its own dtype.
        x: [B, D].
        dt: [B, D], the time step.
        A: [D, N].
        B: [B, N].
        C: [B, N].
        D: [D], the skip connection.
        z: [B, D], the gate.
        dt_bias: [D], added to ``dt``.
        dt_softplus: apply softplus to ``dt`` (after the bias).

    Returns:
        [B, D] in the dtype of ``x``.

    Raises:
        ManticoreError: a shape does not fit the others, or a gradient is asked for.
    """
    tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    _check(state, tensors)
    arguments = (state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    if choose(x.device, compute_dtype(state.dtype)) in ("triton", "mamba_ssm"):
        return _update_in_triton(*arguments)
    return update_in_torch(*arguments)


@torch.no_grad()
def update_in_torch(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """The definition."""
    dtype = compute_dtype(state.dtype)
    x_, step = x.to(dtype), dt.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    if dt_softplus:
        step = F.softplus(step)
    new = state.to(dtype) * torch.exp(step[:, :, None] * A.to(dtype))
    new += (step * x_)[:, :, None] * B.to(dtype)[:, None, :]
    state.copy_(new)
    out = torch.matmul(new, C.to(dtype)[:, :, None])[:, :, 0]
    if D is not None:
        out = out + D.to(dtype) * x_
    if z is not None:
        out = out * F.silu(z.to(dtype))
    return out.to(x.dtype)


def _update_in_triton(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    from manticore.kernels.scan_triton import on_device_of, power_of_two
    from manticore.kernels.state_update_kernel import CHANNELS, update_kernel

    batch, channels, state_size = state.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    gate = x if z is None else z
    D, dt_bias = (None if tensor is None else tensor.contiguous() for tensor in (D, dt_bias))
    with on_device_of(x):
        update_kernel[(-(-channels // CHANNELS), batch)](
            *(state, x, dt, A, B, C, D, gate, dt_bias, out, channels, state_size),
            *(*state.stride(), *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *C.stride(), *gate.stride()),
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=dt_bias is not None,
            SOFTPLUS=dt_softplus,
            N=power_of_two(state_size),
            num_warps=1,
        )
    return out


def _check(state: Tensor, tensors: dict[str, Tensor | None]) -> None:
    if state.dim() != 3 or state.numel() == 0:
        raise _problem("state", tuple(state.shape), "[batch, channels, state size], none of them 0")
    batch, channels, state_size = state.shape
    shapes = {
        **dict.fromkeys(("x", "dt", "z"), (batch, channels)),
        **dict.fromkeys(("B", "C"), (batch, state_size)),
        **dict.fromkeys(("D", "dt_bias"), (channels,)),
        "A": (channels, state_size),
    }
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shapes[name]:
            raise _problem(name, tuple(tensor.shape), shapes[name])
        if tensor.device != state.device:
            raise _problem(name, tensor.device, f"{state.device}, where the state is")
    given = [state, *(tensor for tensor in tensors.values() if tensor is not None)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        raise ManticoreError(
            "selective_state_update: has no backward pass (got tensors that require a gradient, expected none). "
            "Fix: call it under torch.no_grad(), or selective_scan with initial_state"
        )


def _problem(name: str, got: object, expected: object) -> ManticoreError:
    return ManticoreError(
        f"selective_state_update: {name} does not fit the state (got {got}, expected {expected}). "
        f"Fix: pass tensors in the layout of mamba-ssm, all on one device"
    )
