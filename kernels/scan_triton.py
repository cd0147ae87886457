"""The selective scan on CUDA, in Triton: ``scan_triton_kernels`` behind the contract of all paths.

Takes float32, bfloat16 and float16 as they are, mixed as a model under autocast mixes them, and gives gradients in the
same dtypes; inside everything is float32. How many channels share a program follows from the batch and the device:
more of them save traffic for B, C and the parts of their gradients, fewer fill the device.

Under ``TRITON_INTERPRET=1`` (set before triton is first imported) the kernels run on the CPU, for checking.
Shapes: B batch, D channels, L time steps, N state size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from manticore.kernels.scan_contract import Gradients, Inputs, Outputs

_OLDEST = (3, 5)
_STEPS = 8
"""Steps of one thread, as in the kernels."""
_TILE_ROWS = 512
"""State size (padded) times lanes of a tile; with 8 steps each this is what the registers of 8 warps hold."""
_MOST_CHANNELS, _LEAST_CHANNELS = 16, 4


@cache
def interpreted() -> bool:
    """Whether Triton runs its interpreter instead of compiling."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def problem() -> str | None:
    """Why this path cannot run on this machine; None if it can."""
    if find_spec("triton") is None:
        return "triton is not installed. Fix: pip install triton"
    installed = version("triton")
    if tuple(int(part) for part in installed.split(".")[:2]) < _OLDEST:
        return f"triton is too old (got {installed}, expected 3.5 or later). Fix: pip install --upgrade triton"
    if not torch.cuda.is_available() and not interpreted():
        return "no CUDA device is there. Fix: use a machine with one, or set TRITON_INTERPRET=1 to check results"
    return None


def supports(device: torch.device, dtype: torch.dtype) -> bool:
    """CUDA (or the CPU, interpreted), and whatever is computed in float32."""
    if dtype != torch.float32:
        return False
    return device.type == "cuda" or (device.type == "cpu" and find_spec("triton") is not None and interpreted())


def tile(state_size: int, steps: int) -> tuple[int, int, int]:
    """Padded state size, lanes and warps of a tile; it covers lanes * 8 steps."""
    padded = power_of_two(state_size)
    lanes = max(1, min(32, _TILE_ROWS // padded, power_of_two(-(-steps // _STEPS))))
    return padded, lanes, max(1, min(8, padded * lanes // 64))


def states_shape(inputs: Inputs) -> tuple[int, ...]:
    """What a forward pass saves: the state before each tile, [B, tiles, N, D]."""
    batch, channels, steps = inputs.u.shape
    state_size = inputs.A.shape[1]
    return batch, -(-steps // (tile(state_size, steps)[1] * _STEPS)), state_size, channels


def channels_per_program(batch: int, channels: int, processors: int) -> int:
    """As many channels as still leave two programs per multiprocessor."""
    group = _MOST_CHANNELS
    while group > _LEAST_CHANNELS and batch * -(-channels // group) < 2 * processors:
        group //= 2
    return group


def forward(inputs: Inputs, save_states: bool) -> Outputs:
    """Run the scan."""
    from manticore.kernels.scan_triton_kernels import forward_kernel

    batch, channels, _ = inputs.u.shape
    inputs = _readable(inputs)
    out = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    last_state = inputs.u.new_empty((batch, inputs.A.shape[1], channels), dtype=torch.float32)
    states = inputs.u.new_empty(states_shape(inputs) if save_states else (0,), dtype=torch.float32)
    grid, options = _launch(inputs)
    with on_device_of(inputs.u):
        forward_kernel[grid](
            *_pointers(inputs),
            inputs.initial_state,
            out,
            last_state,
            states,
            *_sizes(inputs),
            **options,
            HAS_INITIAL=inputs.initial_state is not None,
            SAVE=save_states,
        )
    return Outputs(out, last_state, states)


def backward(inputs: Inputs, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None) -> Gradients:
    """All gradients, in the dtypes of the inputs; sums over programs are added here, always in the same order."""
    from manticore.kernels.scan_triton_kernels import backward_kernel

    batch, channels, steps = inputs.u.shape
    state_size = inputs.A.shape[1]
    given = inputs
    inputs = _readable(inputs)
    grad_out = _time_contiguous(grad_out)
    grid, options = _launch(inputs)
    tiles = states.shape[1]

    def parts(*shape: int) -> Tensor:
        return inputs.u.new_empty(shape, dtype=torch.float32)

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    grad_u, grad_delta = like(inputs.u), like(inputs.delta)
    grad_z = None if inputs.z is None else like(inputs.z)
    grad_state = parts(batch, state_size, channels)
    if grad_last_state is None:
        grad_state.zero_()
    else:
        grad_state.copy_(grad_last_state)
    parts_A = parts(batch, tiles, state_size, channels)
    parts_B, parts_C = (parts(batch, grid[0], state_size, steps) for _ in range(2))
    parts_D, parts_bias = (
        None if tensor is None else parts(batch, tiles, channels) for tensor in (inputs.D, inputs.delta_bias)
    )
    with on_device_of(inputs.u):
        backward_kernel[grid](
            *_pointers(inputs),
            states,
            grad_out,
            *(grad_u, grad_delta, grad_z, grad_state, parts_A, parts_B, parts_C, parts_D, parts_bias),
            *_sizes(inputs),
            *grad_out.stride()[:2],
            **options,
        )
    found: dict[str, Any] = {
        "u": grad_u,
        "delta": grad_delta,
        "A": parts_A.sum((0, 1)).T,
        "B": parts_B.sum(1),
        "C": parts_C.sum(1),
        "D": None if parts_D is None else parts_D.sum((0, 1)),
        "z": grad_z,
        "delta_bias": None if parts_bias is None else parts_bias.sum((0, 1)),
        "initial_state": grad_state,
    }
    return Gradients(**{name: found[name].to(tensor.dtype) for name, tensor in given.tensors().items()})


def power_of_two(number: int) -> int:
    """The least one that is not below."""
    return 1 << (number - 1).bit_length()


def _time_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy in its own dtype if its steps do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _readable(inputs: Inputs) -> Inputs:
    """The inputs as the kernels read them: time contiguous, the small parameters contiguous."""
    return inputs.map(lambda tensor: _time_contiguous(tensor) if tensor.dim() == 3 else tensor.contiguous())


def _pointers(inputs: Inputs) -> tuple[Tensor | None, ...]:
    return inputs.u, inputs.delta, inputs.z, inputs.A, inputs.B, inputs.C, inputs.D, inputs.delta_bias


def _sizes(inputs: Inputs) -> tuple[int, ...]:
    """Sizes, then strides of batch and row of each sequence."""
    _, channels, steps = inputs.u.shape
    sequences = (inputs.u, inputs.delta, inputs.u if inputs.z is None else inputs.z, inputs.B, inputs.C)
    return channels, steps, inputs.A.shape[1], *(size for tensor in sequences for size in tensor.stride()[:2])


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def _launch(inputs: Inputs) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, and the constants that both kernels share."""
    batch, channels, steps = inputs.u.shape
    on_device = inputs.u.device.type == "cuda"
    processors = torch.cuda.get_device_properties(inputs.u.device).multi_processor_count if on_device else 1
    group = channels_per_program(batch, channels, processors)
    padded, lanes, warps = tile(inputs.A.shape[1], steps)
    options = {
        "HAS_Z": inputs.z is not None,
        "HAS_D": inputs.D is not None,
        "HAS_BIAS": inputs.delta_bias is not None,
        "SOFTPLUS": inputs.delta_softplus,
        "GROUP": group,
        "N": padded,
        "LANES": lanes,
        "num_warps": warps,
    }
    return (-(-channels // group), batch), options
