"""Whether a training step fits a device, on how many devices it would, and what else would make it fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manticore.errors import ManticoreError
from manticore.plan.cases import Case, Setting
from manticore.plan.memory import Strategy

RESERVED = 0.05
"""Share of a device's memory that no tensor gets: the driver's context, libraries' work space, gaps between tensors."""

MOST_DEVICES = 1024

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str) -> int:
    """``80GB`` → 80 000 000 000; ``80GiB`` → 80 · 2³⁰.

    Raises:
        ManticoreError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ManticoreError(f"--device-memory: got {text!r} (expected a size such as 80GB or 24GiB). Fix: write 80GB")
    return size


@dataclass(frozen=True)
class Fit:
    """A training step on some devices."""

    setting: Setting
    devices: int
    step_flops: float
    """Per optimizer step, over all devices."""
    data_parallel: float
    """Bytes on each device where every device holds everything."""
    sharded: float | None
    """Bytes on each device where weights are split over devices; None where that is not possible."""
    fits: Strategy | None
    """The first way that fits; None: neither."""
    least_devices: int | None
    """The smallest number of devices on which it fits; None: on no number up to 1024."""

    @property
    def smaller(self) -> float:
        """Bytes on each device by the way that takes fewer."""
        return min(size for size in (self.data_parallel, self.sharded) if size is not None)


def fit(setting: Setting, case: Case, devices: int, device_memory: float, *, shardable: bool) -> Fit:
    """Compare a case's peaks with what a device has.

    Args:
        setting: of the case.
        case: what is measured.
        devices: how many there are.
        device_memory: bytes of each.
        shardable: whether the stage can split weights over devices; a search cannot.
    """
    room = device_memory * (1 - RESERVED)
    ways = _ways(shardable)

    def first(count: int) -> Strategy | None:
        return next((way for way in ways if (count > 1 or way == ways[0]) and case.peak(count, way) <= room), None)

    candidates = [count for count in range(1, min(case.micro_batch, MOST_DEVICES) + 1) if case.micro_batch % count == 0]
    return Fit(
        setting,
        devices,
        case.flops * case.accumulation,
        case.peak(devices),
        case.peak(devices, "sharded") if shardable and devices > 1 else None,
        first(devices),
        next((count for count in candidates if first(count) is not None), None),
    )


def _ways(shardable: bool) -> tuple[Strategy, ...]:
    return ("data parallel", "sharded") if shardable else ("data parallel",)


def way_out(own: Setting, fits: Sequence[Fit], first: Callable[[Fit], bool] = lambda f: f.fits is not None) -> str:
    """What would make a step fit, in a phrase: the mildest change of the setting, or more devices."""
    asked = next(f for f in fits if f.setting == own)
    found = []
    if asked.least_devices is not None:
        found.append(f"{asked.least_devices} devices")
    found += [str(f.setting) for f in fits if f.setting != own and first(f)][:1]
    return " or ".join(found) or "a smaller batch_size or length, or larger devices"
