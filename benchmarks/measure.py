"""How every benchmark here measures: one thread, CPU time, candidates interleaved round by round, medians, JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def interleaved(candidates: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of process CPU time of each candidate, one value per round.

    All candidates run once per round, in turn, so that a drift of the machine's speed meets them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(warmup + rounds):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            if round_ >= warmup:
                seconds[name].append(time.process_time() - start)
    return seconds


def paired_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator))


def peak_bytes(run: Callable[[], Any]) -> int:
    """How far the process's resident memory rises above where it stood before ``run`` (Linux)."""
    gc.collect()
    # what the allocator holds back would hide the rise
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) * 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": model,
        "threads": torch.get_num_threads(),
        "malloc": {name: os.environ[name] for name in sorted(os.environ) if name.startswith("MALLOC_")},
    }


def write_json(name: str, figures: Mapping[str, Any]) -> Path:
    """Write ``results/<name>.json`` beside the scripts."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **figures}, indent=2) + "\n")
    return path
