"""Which path runs the selective scan: the fastest that can, or the one that ``MANTICORE_SCAN`` names.

``MANTICORE_SCAN=auto`` (the default) takes the first path of ``PREFERENCE`` that supports the tensors at hand. A named
path that cannot run at all is an error; one that does not support a dtype or a device leaves those tensors to torch.
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
from manticore.kernels import scan_native
from manticore.kernels.scan_contract import Path

logger = logging.getLogger(__name__)

VARIABLE = "MANTICORE_SCAN"


@dataclass(frozen=True)
class Entry:
    """One path: where its code is, what it is, and what it can take."""

    module: str
    summary: str
    supports: Callable[[torch.device, torch.dtype], bool]
    """Whether tensors of this device and compute dtype can run here."""
    problem: Callable[[], str | None]
    """Why the path cannot run on this machine at all; None if it can."""

    def load(self) -> Path:
        """The path's module."""
        module: Path = import_module(self.module)  # type: ignore[assignment]
        return module


def _anything(device: torch.device, dtype: torch.dtype) -> bool:
    return True


def _no_problem() -> None:
    return None


PATHS: dict[str, Entry] = {
    "reference": Entry("manticore.kernels.scan_reference", "the plain loop, for checking", _anything, _no_problem),
    "torch": Entry("manticore.kernels.scan_torch", "chunked, plain torch, any device", _anything, _no_problem),
    "native": Entry(
        "manticore.kernels.scan_native", "compiled C, CPU, float32", scan_native.supports, scan_native.problem
    ),
}

PREFERENCE = ("native", "torch")
"""For ``auto``, fastest first. The last one takes anything."""


def requested() -> str:
    """The value of ``MANTICORE_SCAN``, checked."""
    name = os.environ.get(VARIABLE, "auto")
    if name != "auto" and name not in PATHS:
        raise ManticoreError(
            f"{VARIABLE}: unknown path (got {name!r}, expected one of auto, {', '.join(PATHS)}). Fix: unset {VARIABLE}"
        )
    return name


def choose(device: torch.device, dtype: torch.dtype) -> str:
    """The name of the path that runs for tensors of this device and compute dtype."""
    name = requested()
    if name != "auto":
        problem = PATHS[name].problem()
        if problem is not None:
            raise ManticoreError(f"{VARIABLE}={name}: {problem}, or unset {VARIABLE}")
        return name if PATHS[name].supports(device, dtype) else PREFERENCE[-1]
    return fastest(device, dtype)


def fastest(device: torch.device, dtype: torch.dtype) -> str:
    """The first path of ``PREFERENCE`` that can run; says once what stands in the way of a better one."""
    for path in PREFERENCE[:-1]:
        if PATHS[path].supports(device, dtype):
            problem = PATHS[path].problem()
            if problem is None:
                return path
            _say_once(path, problem)
    return PREFERENCE[-1]


@cache
def _say_once(path: str, problem: str) -> None:
    logger.warning(
        "selective scan: the %s path is not available, so Mamba layers run in plain torch, several times slower: %s",
        path,
        problem,
    )
