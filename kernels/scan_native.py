"""The selective scan in C for CPUs, in float32: ``scan.c`` behind the contract of all paths.

Tensors go over as pointer and strides, without copies. Sums that cross items of work (B and C over channels, the
parameters over the batch) come back in parts and are added here, in an order that does not depend on the threads.
Shapes: B batch, D channels, L time steps, N state size.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from manticore.kernels.native_build import BuildError, InstructionSet, instruction_set, load_library
from manticore.kernels.scan_contract import CHUNK, Gradients, Inputs, Outputs

_SOURCE = Path(__file__).with_name("scan.c")
_WANTED_ITEMS = 16
_LEAST_CHANNELS = 64
_WORTH_A_THREAD = 1 << 16
"""State elements (batch * channels * steps * state size) below which a second thread costs more than it brings."""


_SIZES = ("batch", "channels", "steps", "state_size", "groups", "group_channels", "softplus", "threads")
_VIEWS = (
    *("u", "delta", "z", "B", "C", "A", "D", "bias", "initial", "out", "last", "states", "grad_out", "grad_last"),
    *("grad_u", "grad_delta", "grad_z", "grad_B", "grad_C", "grad_A", "grad_initial", "grad_D", "grad_bias"),
)
_AXES = 3
_Arguments = ctypes.c_int64 * (len(_SIZES) + len(_VIEWS) * (1 + _AXES))
"""``scan_arguments`` of scan.c, field by field; a pointer is as wide as a number there."""


@cache
def library(target: InstructionSet) -> ctypes.CDLL | str:
    """The compiled file for this instruction set, or why there is none; decided once per process."""
    try:
        found = load_library(_SOURCE, target)
    except BuildError as error:
        return str(error)
    found.scan_run.argtypes = (ctypes.POINTER(ctypes.c_int64), ctypes.c_int)
    if found.scan_chunk() != CHUNK:
        return f"scan.c works in chunks of {found.scan_chunk()} (expected {CHUNK}). Fix: reinstall manticore"
    return found


def problem() -> str | None:
    """Why this path cannot run on this machine; None if it can."""
    found = library(instruction_set())
    return found if isinstance(found, str) else None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """CPU and float32; everything that is computed in float32 arrives as such."""
    return device.type == "cpu" and dtype == torch.float32


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Run the scan."""
    batch, channels, _ = inputs.u.shape
    state_size = inputs.A.shape[1]
    out = torch.empty_like(inputs.u)
    last_state = inputs.u.new_empty(batch, state_size, channels)
    states = inputs.u.new_empty((batch, inputs.num_chunks, state_size, channels) if save_states else (0,))
    _run(inputs, backward=False, out=out, last=last_state, states=states if save_states else None)
    return Outputs(out, last_state, states)


def backward(inputs: Inputs, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None) -> Gradients:
    """All gradients."""
    batch, channels, steps = inputs.u.shape
    state_size = inputs.A.shape[1]
    groups, _ = _split(inputs)
    new = inputs.u.new_empty
    grad_u, grad_delta = torch.empty_like(inputs.u), torch.empty_like(inputs.delta)
    grad_z = None if inputs.z is None else torch.empty_like(inputs.z)
    grad_B, grad_C = new(batch, groups, steps, state_size), new(batch, groups, steps, state_size)
    grad_A, grad_initial = new(batch, state_size, channels), new(batch, state_size, channels)
    grad_D, grad_bias = new(batch, channels), new(batch, channels)
    _run(
        inputs,
        backward=True,
        states=states,
        grad_out=grad_out,
        grad_last=grad_last_state,
        grad_u=grad_u,
        grad_delta=grad_delta,
        grad_z=grad_z,
        grad_B=grad_B,
        grad_C=grad_C,
        grad_A=grad_A,
        grad_initial=grad_initial,
        grad_D=grad_D,
        grad_bias=grad_bias,
    )
    return Gradients(
        u=grad_u,
        delta=grad_delta,
        A=grad_A.sum(0).T,
        B=grad_B.sum(1).transpose(1, 2),
        C=grad_C.sum(1).transpose(1, 2),
        D=None if inputs.D is None else grad_D.sum(0),
        z=grad_z,
        delta_bias=None if inputs.delta_bias is None else grad_bias.sum(0),
        initial_state=None if inputs.initial_state is None else grad_initial,
    )


def _split(inputs: Inputs) -> tuple[int, int]:
    """Groups of channels per batch element, and channels per group; the same for any number of threads."""
    batch, channels, _ = inputs.u.shape
    groups = min(-(-_WANTED_ITEMS // batch), -(-channels // _LEAST_CHANNELS))
    blocks = -(-channels // (groups * _LEAST_CHANNELS))
    group_channels = blocks * _LEAST_CHANNELS
    return -(-channels // group_channels), group_channels


def _run(inputs: Inputs, backward: bool, **others: Tensor | None) -> None:
    """Fill the argument block and call; tensors stay referenced by the caller meanwhile."""
    compiled = library(instruction_set())
    if isinstance(compiled, str):
        raise RuntimeError(f"the native scan was called although it cannot run: {compiled}")
    batch, channels, steps = inputs.u.shape
    state_size = inputs.A.shape[1]
    groups, group_channels = _split(inputs)
    busy = inputs.u.numel() * state_size >= _WORTH_A_THREAD
    sizes = (batch, channels, steps, state_size, groups, group_channels, int(inputs.delta_softplus))
    numbers = [*sizes, torch.get_num_threads() if busy else 1]
    views = {
        **{name: getattr(inputs, name) for name in ("u", "delta", "z", "B", "C", "A", "D")},
        "bias": inputs.delta_bias,
        "initial": inputs.initial_state,
        **others,
    }
    for name in _VIEWS:
        tensor = views.get(name)
        if tensor is None:
            numbers += (0,) * (1 + _AXES)
        else:
            strides = tensor.stride()[:_AXES]
            numbers += (tensor.data_ptr(), *strides, *(0,) * (_AXES - len(strides)))
    arguments = _Arguments(*numbers)
    if compiled.scan_run(arguments, int(backward)):
        raise MemoryError("selective_scan: no memory for the buffers of the native path")
