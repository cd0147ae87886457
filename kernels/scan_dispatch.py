"""Which path runs the selective scan: the first that can, or the one that ``MANTICORE_SCAN`` names.

``MANTICORE_SCAN=auto`` (the default) takes the first path of ``PREFERENCE`` for the device that can take the tensors at
hand. A named path that cannot run at all is an error; one that cannot take these tensors leaves them to torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch

from manticore.errors import ManticoreError
from manticore.kernels import scan_mamba_ssm, scan_native, scan_triton
from manticore.kernels.scan_contract import Inputs, Path

logger = logging.getLogger(__name__)

VARIABLE = "MANTICORE_SCAN"


def _anything(device: torch.device, dtype: torch.dtype) -> bool:
    return True


def _any_inputs(inputs: Inputs) -> bool:
    return True


def _no_problem() -> None:
    return None


def _one_per_chunk(inputs: Inputs) -> tuple[int, ...]:
    batch, channels, _ = inputs.u.shape
    return batch, inputs.num_chunks, inputs.A.shape[1], channels


@dataclass(frozen=True)
class Entry:
    """One path: where its code is, what it is, and what it can take."""

    module: str
    summary: str
    supports: Callable[[torch.device, torch.dtype], bool] = _anything
    """Whether tensors of this device and compute dtype can run here."""
    problem: Callable[[], str | None] = _no_problem
    """Why the path cannot run on this machine at all; None if it can."""
    reads_any_dtype: bool = False
    """Whether the path takes the tensors as they come, instead of cast to the compute dtype."""
    takes: Callable[[Inputs], bool] = _any_inputs
    """Whether these inputs can run here, given that device and dtype can."""
    states_shape: Callable[[Inputs], tuple[int, ...]] = _one_per_chunk
    """Shape of what the forward pass saves."""

    def load(self) -> Path:
        """The path's module."""
        module: Path = import_module(self.module)  # type: ignore[assignment]
        return module


PATHS: dict[str, Entry] = {
    "reference": Entry("manticore.kernels.scan_reference", "the plain loop, for checking"),
    "torch": Entry("manticore.kernels.scan_torch", "chunked, plain torch, any device"),
    "native": Entry(
        "manticore.kernels.scan_native", "compiled C, CPU, float32", scan_native.supports, scan_native.problem
    ),
    "triton": Entry(
        "manticore.kernels.scan_triton",
        "fused Triton kernels, CUDA",
        scan_triton.supports,
        scan_triton.problem,
        reads_any_dtype=True,
        states_shape=scan_triton.states_shape,
    ),
    "mamba_ssm": Entry(
        "manticore.kernels.scan_mamba_ssm",
        "the CUDA kernels of mamba_ssm",
        scan_mamba_ssm.supports,
        scan_mamba_ssm.problem,
        reads_any_dtype=True,
        takes=scan_mamba_ssm.takes,
        states_shape=scan_mamba_ssm.states_shape,
    ),
}

PREFERENCE: dict[str, tuple[str, ...]] = {"cuda": ("mamba_ssm", "triton"), "cpu": ("native",)}
"""Device type → paths that ``auto`` tries, in this order, before torch, which takes anything."""
_LAST = "torch"


def requested() -> str:
    """The value of ``MANTICORE_SCAN``, checked."""
    name = os.environ.get(VARIABLE, "auto")
    if name != "auto" and name not in PATHS:
        raise ManticoreError(
            f"{VARIABLE}: unknown path (got {name!r}, expected one of auto, {', '.join(PATHS)}). Fix: unset {VARIABLE}"
        )
    return name


def choose(device: torch.device, dtype: torch.dtype, inputs: Inputs | None = None) -> str:
    """The name of the path that runs for tensors of this device and compute dtype.

    Args:
        device: where the tensors are.
        dtype: what is computed in.
        inputs: the tensors themselves, where a path may refuse some; None asks for tensors that no path refuses.
    """
    name = requested()
    if name == "auto":
        return fastest(device, dtype, inputs)
    problem = PATHS[name].problem()
    if problem is not None:
        raise ManticoreError(f"{VARIABLE}={name}: {problem}, or unset {VARIABLE}")
    return name if _can(name, device, dtype, inputs) else _LAST


def fastest(device: torch.device, dtype: torch.dtype, inputs: Inputs | None = None) -> str:
    """The first path of ``PREFERENCE`` that can run; where only torch is left, says once what stands in the way."""
    problem = None
    for path in PREFERENCE.get(device.type, ()):
        if _can(path, device, dtype, inputs):
            problem = PATHS[path].problem()
            if problem is None:
                return path
    if problem is not None:
        _say_once(path, problem)
    return _LAST


def _can(name: str, device: torch.device, dtype: torch.dtype, inputs: Inputs | None) -> bool:
    path = PATHS[name]
    return path.supports(device, dtype) and (inputs is None or path.takes(inputs))


@cache
def _say_once(path: str, problem: str) -> None:
    logger.warning(
        "selective scan: the %s path is not available, so Mamba layers run in plain torch, several times slower: %s",
        path,
        problem,
    )
