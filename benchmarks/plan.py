"""Does a plan say what a run takes? Predicted over measured FLOPs and memory, and how long a plan takes.

    python benchmarks/plan.py

Measured: the quickstart pair in real training steps; FLOPs by torch's counter, memory as the allocator's peak and as
the rise of the process's resident memory. Timed: the quickstart, GPT-Neo-125M + Mamba-130M, and Pythia-6.9B +
Mamba-2.8B on 8 devices of 80 GB, each as a command of its own, on one
thread; seconds of wall time and of CPU time (bar: 10 s of CPU time, which wall time is on an idle machine).
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

# what is freed goes back at once, so that resident memory is what is held
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "65536")
if os.environ.get("MANTICORE_PLAN_BENCHMARK") is None:
    # the allocator reads its settings when the process starts
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MANTICORE_PLAN_BENCHMARK": "1"})

import torch
from measure import peak_bytes, write_json
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

import manticore
from manticore.flops import counted_flops
from manticore.kernels.mamba import use_selective_scan
from manticore.plan.planner import plan
from manticore.plan.sources import find_sources
from manticore.schema.loading import load_recipe
from manticore.training.trainable import set_trainable

BARS = {"flops": 0.01, "memory": 0.15, "seconds": 10.0}
LARGE = ["task.options.length=2048", "--devices", "8", "--device-memory", "80GB"]
COMMANDS = {
    "quickstart": ["quickstart"],
    "gpt-neo-125m + mamba-130m": ["gpt-neo-125m", "mamba-130m-hf", "task.options.length=1024"],
    "pythia-6.9b + mamba-2.8b, 8 x 80 GB": ["pythia-6.9b", "mamba-2.8b-hf", *LARGE],
}


def real(model: Any, batch: int, length: int, rows: int) -> dict[str, float]:
    """FLOPs and peak bytes of a training step, optimizer state included."""
    use_selective_scan(model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    input_ids = torch.randint(0, rows, (batch, length))

    def step() -> None:
        logits = model(input_ids=input_ids, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), input_ids.flatten())
        del logits
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with counted_flops() as counter:
        step()
    held = sum(p.nbytes for p in model.parameters())
    held += sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    resident = statistics.median(peak_bytes(step) for _ in range(5))
    return {"flops": counter.get_total_flops(), "allocated": held + peak, "resident": held + resident}


def compared() -> dict[str, dict[str, float]]:
    """Predicted over measured, for search and fine-tuning of the quickstart."""
    recipe = load_recipe("quickstart", ["search={method: darts, steps: 300, batch_size: 16}"]).recipe
    found = plan(recipe, device_memory=1e12)
    rows, length = found.task.vocab_size or 0, found.task.length
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_config(source.config) for source in find_sources(recipe)]
    hybrid = manticore.combine(models, num_blocks=recipe.combine.num_blocks, vocab_size=rows)
    small = manticore.discretize(hybrid, found.paths["costliest"])
    for model, searched in ((hybrid, True), (small, False)):
        set_trainable(model, "all", fresh_vocabulary=True)
        for weights in model.mixing.mixture_parameters():
            weights.requires_grad_(searched)
    ratios = {}
    for name, model in (("search", hybrid), ("finetune", small)):
        stage = next(stage for stage in found.stages if stage.name == name)
        measured = real(model, getattr(recipe, name).batch_size, length, rows)
        ratios[name] = {
            "flops": (stage.step_flops or 0) / measured["flops"],
            "allocated": (stage.bytes or 0) / measured["allocated"],
            "resident": (stage.bytes or 0) / measured["resident"],
        }
    return ratios


def timed(words: list[str]) -> dict[str, float]:
    """Seconds of the command, of which it computes."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "manticore", "plan", *words], check=True, capture_output=True, env=one_thread)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": time.perf_counter() - begun, "cpu_seconds": cpu}


def main() -> int:
    """Print the ratios and times, write the JSON, and fail where a bar is missed."""
    torch.set_num_threads(1)
    ratios, times = compared(), {name: timed(words) for name, words in COMMANDS.items()}
    for name, row in ratios.items():
        print(f"{name}: predicted / measured: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    for name, row in times.items():
        print(f"{name}: {row['wall_seconds']:.1f} s, {row['cpu_seconds']:.1f} s of CPU")
    load = os.getloadavg()[0]
    print(f"load average {load:.1f}")
    print(f"written to {write_json('plan', {'ratios': ratios, 'times': times, 'load_average': load})}")
    met = all(
        abs(row["flops"] - 1) <= BARS["flops"] and abs(row["resident"] - 1) <= BARS["memory"] for row in ratios.values()
    )
    return 0 if met and all(row["cpu_seconds"] <= BARS["seconds"] for row in times.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
