"""The selective scan by mamba_ssm's own CUDA kernels, where they are really there.

They are the compiled module ``selective_scan_cuda``. The package ``mamba_ssm`` imports without it and fails only when a
scan runs, so the module is what is probed. It takes no initial state, and its backward pass knows no gradient of the
last state: calls with the former go to the next path, and the latter is computed by that path's kernels.

What it saves are its own states and the output before the gate, both as bytes in one tensor.
Shapes: B batch, D channels, L time steps, N state size.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

import torch
from torch import Tensor

from manticore.kernels.scan_contract import Gradients, Inputs, Outputs

_MODULE = "selective_scan_cuda"
_CHUNK = 2048
"""Steps between two states that it saves."""
_MOST_STATES = 256
_INSTALL = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install mamba-ssm --no-build-isolation"
_SEQUENCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def problem() -> str | None:
    """Why this path cannot run on this machine; None if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device is there. Fix: use a machine with one"
    if find_spec(_MODULE) is None:
        return f"mamba_ssm's compiled module {_MODULE} is not installed. Fix: {_INSTALL}"
    try:
        import_module(_MODULE)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        return f"{_MODULE} does not load, it was built for another torch ({reason}). Fix: {_INSTALL} --force-reinstall"
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """CUDA, and whatever is computed in float32."""
    return device.type == "cuda" and dtype == torch.float32


def takes(inputs: Inputs) -> bool:
    """No initial state, a state that fits its registers, and a sequence dtype that it was built for."""
    return inputs.initial_state is None and inputs.A.shape[1] <= _MOST_STATES and inputs.u.dtype in _SEQUENCE_DTYPES


def states_shape(inputs: Inputs) -> tuple[int, ...]:
    """Bytes of its states [B, D, chunks, 2 N], as float32, and, with a gate, of the output before it [B, D, L]."""
    states, ungated = _layout(inputs)
    return (prod(states) + -(-prod(ungated) * inputs.u.element_size() // 4),)


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Run the scan."""
    taken = _as_required(inputs)
    ungated, states, *gated = import_module(_MODULE).fwd(*_arguments(taken), taken.delta_softplus)
    out = gated[0] if gated else ungated
    # [B, D, chunks, N pairs of (decay, state)]
    last_state = states[:, :, -1, 1::2].transpose(1, 2)
    if not save_states:
        return Outputs(out, last_state, last_state.new_empty(0))
    kept = states.new_empty(states_shape(inputs))
    kept[: states.numel()] = states.flatten()
    if gated:
        _ungated_part(inputs, kept).copy_(ungated)
    return Outputs(out, last_state, kept)


def backward(inputs: Inputs, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None) -> Gradients:
    """All gradients."""
    if grad_last_state is not None:
        from manticore.kernels import scan_triton

        again = scan_triton.forward(inputs, True).states
        return scan_triton.backward(inputs, again, grad_out, grad_last_state)
    taken = _as_required(inputs)
    shape, _ = _layout(inputs)
    ungated = None if inputs.z is None else _ungated_part(inputs, states)
    u, delta, A, B, C, D, bias, *z = import_module(_MODULE).bwd(
        *_arguments(taken),
        grad_out.contiguous(),
        states[: prod(shape)].reshape(shape),
        ungated,
        None,
        taken.delta_softplus,
        False,
    )
    found = {"u": u, "delta": delta, "A": A, "B": B[:, 0], "C": C[:, 0], "D": D, "delta_bias": bias}
    if z:
        found["z"] = z[0]
    return Gradients(**{name: found[name] for name in inputs.tensors()})


def _layout(inputs: Inputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of its states and of the output before the gate; the latter is saved only where there is a gate."""
    batch, channels, steps = inputs.u.shape
    states = (batch, channels, -(-steps // _CHUNK), 2 * inputs.A.shape[1])
    return states, (0,) if inputs.z is None else (batch, channels, steps)


def _ungated_part(inputs: Inputs, kept: Tensor) -> Tensor:
    """The output before the gate, as a view into what is saved."""
    states, ungated = _layout(inputs)
    return kept[prod(states) :].view(inputs.u.dtype)[: prod(ungated)].view(ungated)


def _as_required(inputs: Inputs) -> Inputs:
    """Sequences in the dtype of ``u`` with contiguous time, parameters in float32."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(inputs.u.dtype if tensor.dim() == 3 else torch.float32).contiguous()

    return inputs.map(convert)


def _arguments(inputs: Inputs) -> tuple[Any, ...]:
    """In the order of its functions; B and C get an axis of one group."""
    B, C = inputs.B[:, None], inputs.C[:, None]
    return inputs.u, inputs.delta, inputs.A, B, C, inputs.D, inputs.z, inputs.delta_bias
