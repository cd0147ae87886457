"""What a selective scan costs on a CPU, alone and in a model, beside what a user would run otherwise.

    pip install mambapy                          # one of the candidates; its rows say so where it is missing
    python benchmarks/scan.py [--quick]          # about seven minutes on one core; quick: one

Scan: batch 2, 512 channels, 16 states, float32; forward without gradients, and forward + backward with all eight
gradients. Beside it one eager GPT-Neo layer of the same model width (256, 8 heads, MLP 1024) and the time that the
arithmetic on the states alone would take at the rates measured on this core. Model: four layers of width 256,
vocabulary 1024, batch 2; one step is forward, loss, backward, AdamW.

One thread, process CPU time, candidates interleaved, medians; ratios are medians over the rounds of the ratio within a
round. The two-thread rows are wall time and mean little while the machine is busy: its load is printed. The JSON is
written after every row.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import environment, interleaved, paired_ratio, peak_bytes, write_json
from rich.console import Console
from rich.table import Table
from scan_methods import BATCH, CHANNELS, block_passes, manticore_scan, methods, op_count_bound, passes, rates
from scan_models import training_steps

from manticore.kernels.doctor import scan_status
from manticore.kernels.native_build import BuildError, instruction_set

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
MODEL_LENGTHS = (128, 256, 512, 1024, 2048)
ROUNDS = {128: 15, 256: 11, 512: 7, 1024: 5, 2048: 3, 4096: 3}
FALLBACK_LENGTH = 256
"""transformers' own backward pass is quadratic: 512 steps took some twenty seconds, 1024 more than a minute."""
BLOCK = "gpt_neo block"
NATIVE_BAR = {128: 0.15, 256: 0.15, 512: 0.15, 1024: 0.07}
TORCH_BAR = {128: 1.5, 512: 1.0, 1024: 1.0, 2048: 1.0, 4096: 1.0}
EXPONENT_BAR, MEMORY_BAR, FLOOR_BAR, MODEL_BAR = 1.1, 8.0, 1.15, 0.8
console = Console(width=140)


class Report:
    """Rows and bars; every addition is printed and written at once."""

    def __init__(self, quick: bool) -> None:
        self.figures: dict[str, Any] = {
            "quick": quick,
            "scan": scan_status().why,
            "load_average_at_start": list(os.getloadavg()),
            "rows": [],
            "model_rows": [],
            "two_threads": [],
            "bars": [],
        }

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Keep and show one row."""
        self.figures[kind].append(row)
        write_json("scan", self.figures)
        cells = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
        console.print("  ".join(cells), highlight=False)

    def bar(self, what: str, value: float, limit: float) -> None:
        """Keep one comparison with a bar."""
        self.figures["bars"].append({"what": what, "value": value, "bar": limit, "met": value <= limit})
        write_json("scan", self.figures)

    def finish(self) -> bool:
        """Print the bars; whether all are met."""
        table = Table("bar", "value", "at most", "met", title="bars")
        for bar in self.figures["bars"]:
            table.add_row(bar["what"], f"{bar['value']:.3f}", str(bar["bar"]), "yes" if bar["met"] else "NO")
        console.print(table)
        self.figures["load_average_at_end"] = list(os.getloadavg())
        console.print(f"written to {write_json('scan', self.figures)}")
        return all(bar["met"] for bar in self.figures["bars"])


def scan_rows(report: Report, lengths: tuple[int, ...], rounds: int | None) -> None:
    """The scan alone, and the GPT-Neo layer."""
    try:
        rate = rates()
        report.figures["rates"] = {"instruction_set": instruction_set().name, **rate}
    except BuildError as error:
        rate = {}
        console.print(f"op-count bound: not measured ({error})")
    medians: dict[tuple[str, int], float] = {}
    for steps in lengths:
        candidates: dict[str, dict[str, Callable[[], None]]] = {}
        for name, scan in methods().items():
            if isinstance(scan, str):
                report.add("rows", {"steps": steps, "method": name, "note": scan})
            elif name == "transformers" and steps > FALLBACK_LENGTH:
                note = f"not run: quadratic in length, measured up to {FALLBACK_LENGTH}"
                report.add("rows", {"steps": steps, "method": name, "note": note})
            else:
                candidates[name] = passes(scan, steps)
        candidates[BLOCK] = block_passes(steps)
        runs = {f"{name} {kind}": run for name, both in candidates.items() for kind, run in both.items()}
        seconds = interleaved(runs, rounds=rounds or ROUNDS[steps])
        bound = op_count_bound(steps, rate) if rate else {}
        for name, both in candidates.items():
            forward, total = (statistics.median(seconds[f"{name} {kind}"]) for kind in ("forward", "both"))
            medians[name, steps] = total
            memory = statistics.median(peak_bytes(both["both"]) for _ in range(3))
            row = {
                "steps": steps,
                "method": name,
                "forward_ms": 1e3 * forward,
                "forward_backward_ms": 1e3 * total,
                "to_block": paired_ratio(seconds[f"{name} both"], seconds[f"{BLOCK} both"]),
                "peak_in_BDL_tensors": memory / (4 * BATCH * CHANNELS * steps),
            }
            report.add("rows", row)
            if name == "native" and steps in NATIVE_BAR:
                report.bar(f"native to GPT-Neo block, {steps} steps", row["to_block"], NATIVE_BAR[steps])
            if name == "torch" and steps in TORCH_BAR:
                report.bar(f"torch to GPT-Neo block, {steps} steps", row["to_block"], TORCH_BAR[steps])
            if name == "native":
                what = f"native, peak memory in (B, D, L) tensors, {steps} steps"
                report.bar(what, row["peak_in_BDL_tensors"], MEMORY_BAR)
        if bound:
            row = {
                "steps": steps,
                "method": "op-count bound",
                "forward_ms": 1e3 * bound["forward"],
                "forward_backward_ms": 1e3 * bound["both"],
                "share_of_native": bound["both"] / medians["native", steps],
            }
            report.add("rows", row)
    first, last = max(256, lengths[0]), lengths[-1]
    for name in ("native", "torch"):
        if last > first:
            exponent = math.log(medians[name, last] / medians[name, first]) / math.log(last / first)
            report.bar(f"{name}, exponent of time in steps, {first} to {last}", exponent, EXPONENT_BAR)


def model_rows(report: Report, lengths: tuple[int, ...], rounds: int | None) -> None:
    """Training steps of whole models."""
    for steps in lengths:
        gc.collect()
        seconds = interleaved(training_steps(steps), rounds=rounds or ROUNDS[steps], warmup=2)
        native = seconds["mamba, native"]
        for name, values in seconds.items():
            row = {"steps": steps, "model": name, "step_ms": 1e3 * statistics.median(values)}
            report.add("model_rows", {**row, "native_to_it": paired_ratio(native, values)})
        for other, limit in (("mamba, pointwise", FLOOR_BAR), ("gpt_neo", MODEL_BAR)):
            ratio = paired_ratio(native, seconds[other])
            report.bar(f"model, native to {other}, {steps} steps", ratio, limit)


def two_thread_rows(report: Report, rounds: int) -> None:
    """Wall time on one and on two threads, in turn."""
    runs = {
        "scan, 1024 steps": passes(manticore_scan("native"), 1024)["both"],
        "model step, 512 steps": training_steps(512)["mamba, native"],
    }
    for name, run in runs.items():
        wall: dict[int, list[float]] = {1: [], 2: []}
        for round_ in range(rounds + 2):
            for threads, values in wall.items():
                torch.set_num_threads(threads)
                start = time.perf_counter()
                run()
                if round_ >= 2:
                    values.append(time.perf_counter() - start)
        torch.set_num_threads(1)
        row = {
            "what": name,
            "one_thread_wall_ms": 1e3 * statistics.median(wall[1]),
            "two_threads_wall_ms": 1e3 * statistics.median(wall[2]),
            "speed_up": paired_ratio(wall[1], wall[2]),
            "speed_up_of_the_fastest": min(wall[1]) / min(wall[2]),
            "load_average": round(os.getloadavg()[0], 1),
        }
        report.add("two_threads", row)


def main() -> int:
    """Measure, print, write, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 512 steps, three rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report(quick)
    malloc = environment()["malloc"] or "glibc's defaults"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"malloc: {malloc}; load average {load}; scan: {report.figures['scan']}", highlight=False)
    rounds = 3 if quick else None
    scan_rows(report, LENGTHS[:3] if quick else LENGTHS, rounds)
    model_rows(report, MODEL_LENGTHS[:2] if quick else MODEL_LENGTHS, rounds)
    two_thread_rows(report, rounds or 15)
    return 0 if report.finish() else 1


if __name__ == "__main__":
    sys.exit(main())
