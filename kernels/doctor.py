"""What runs the selective scan on this machine, why, and what would make it faster."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manticore.kernels.native_build import instruction_set
from manticore.kernels.scan_dispatch import PATHS, PREFERENCE, VARIABLE, choose, fastest, requested


@dataclass(frozen=True)
class ScanStatus:
    """The answer for float32 tensors on one device; the texts are phrases for a person."""

    device: str
    path: str
    """Name of the path that runs."""
    why: str
    faster: str | None
    """What to do to get a faster path; None where this is the fastest there is."""


def scan_status(device: str | torch.device = "cpu") -> ScanStatus:
    """Ask the dispatch what it would do; compiles the native path if that has not happened yet.

    Raises:
        ManticoreError: ``MANTICORE_SCAN`` names a path that does not exist or cannot run.
    """
    where = torch.device(device)
    name = requested()
    path = choose(where, torch.float32)
    if name != "auto":
        taken = f"{VARIABLE}={name}"
        why = taken if path == name else f"{taken} does not run on {where.type}"
        best = fastest(where, torch.float32)
        return ScanStatus(str(where), path, why, None if best == path else f"unset {VARIABLE} (runs {best})")
    why = PATHS[path].summary
    if path == "native":
        why += f", built for {instruction_set().name}"
    for better in PREFERENCE.get(where.type, ()):
        if better == path:
            break
        problem = PATHS[better].problem()
        if problem is not None:
            cause, _, fix = problem.partition(" Fix: ")
            return ScanStatus(str(where), path, f"{why}; {better}, which comes first, is not available: {cause}", fix)
    return ScanStatus(str(where), path, why, None)
