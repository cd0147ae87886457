"""Two processes against one with twice the accumulation: seconds per step on two cores, and how equal the results are.

Both cut each batch in two; one process works through the halves in turn, two take one each and average their
gradients over gloo. Every process has one thread. The runs take turns. On a busy machine two processes get more of
its time than one, so wall time says little there: CPU seconds and the load are written beside it.
Run ``python benchmarks/distributed.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

import manticore
from benchmarks.measure import write_json
from benchmarks.tiny_families import tiny_model
from manticore.processes import is_first, leave, process_count, process_index
from manticore.tasks.task import load_task

BATCH = 16
WARM_UP = 2
JOBS = ("search", "finetune")


def job(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """One search or fine-tuning; the first process writes the weights. Seconds per step after the first."""
    task = load_task("mad/in-context-recall", num_train_examples=512, num_test_examples=16)
    parents = [
        tiny_model("gpt_neo", seed=1, hidden_size=128, max_position_embeddings=256),
        tiny_model("mamba", seed=2, hidden_size=160, num_hidden_layers=4),
    ]
    hybrid = manticore.combine(parents, num_blocks=2, vocab_size=task.vocab_size, check=False)
    shared = {"steps": steps, "batch_size": BATCH, "accumulation": 2 // process_count(), "cpu": True}
    ends: list[tuple[float, float]] = []

    def ended(step: int, _steps: int, _row: dict[str, float]) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    if name == "search":
        model: Any = hybrid
        history = manticore.search(hybrid, task, method="darts", mixture_lr=0.05, progress=ended, **shared).history
    else:
        model = manticore.discretize(hybrid, path=[1, 0])
        settings = {"log_steps": 1, "test_examples": 16, "progress": ended}
        history = manticore.finetune(model, task, **settings, **shared).history
    if is_first():
        tensors = {key: tensor.detach().clone().contiguous() for key, tensor in model.named_parameters()}
        save_file(tensors, folder / f"{name}.safetensors")
    late = list(pairwise(ends))[WARM_UP:]
    return {
        "mixture": [parameter.tolist() for parameter in model.mixing.mixture_parameters()],
        "losses": [row["loss"] for row in history],
        "wall": [after[0] - before[0] for before, after in late],
        "cpu": [after[1] - before[1] for before, after in late],
    }


def worker(folder: Path, steps: int) -> None:
    """What each process of a run does."""
    figures = {name: job(name, folder, steps) for name in JOBS}
    (folder / f"{process_index()}.json").write_text(json.dumps(figures))
    leave()


def run(processes: int, folder: Path, steps: int) -> list[dict[str, Any]]:
    """The figures of each process of one run."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    command = [sys.executable, *launcher, __file__, "--worker", str(folder), "--steps", str(steps)]
    subprocess.run(command, env=environment, check=True)
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(processes)]


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Over all elements of all tensors."""
    return max((tensor - two[key]).abs().max().item() for key, tensor in one.items())


def summary(name: str, runs: dict[int, list[list[dict[str, Any]]]], folders: dict[int, Path]) -> dict[str, Any]:
    """Seconds per step of the first process (the best round's median) and differences of the last round."""
    wall = {n: min(statistics.median(run[0][name]["wall"]) for run in rounds) for n, rounds in runs.items()}
    cpu = {n: min(statistics.median(run[0][name]["cpu"]) for run in rounds) for n, rounds in runs.items()}
    (alone,), (first, second) = runs[1][-1], runs[2][-1]
    weights = [load_file(folders[n] / f"{name}.safetensors") for n in (1, 2)]
    return {
        "wall_seconds_per_step": wall,
        "cpu_seconds_per_step": cpu,
        "cpu_ratio_two_to_one": cpu[2] / cpu[1],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(alone[name]["losses"], first[name]["losses"])),
        "largest_weight_difference": largest_difference(*weights),
        "mixture_weights_identical_on_both_processes": first[name]["mixture"] == second[name]["mixture"],
        "steps": len(alone[name]["losses"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker is not None:
        worker(arguments.worker, arguments.steps)
        return
    load_before = os.getloadavg()
    runs: dict[int, list[list[dict[str, Any]]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(arguments.rounds):
            for processes, rounds in runs.items():
                rounds.append(run(processes, Path(scratch, f"{processes}-{index}"), arguments.steps))
        last = {n: Path(scratch, f"{n}-{arguments.rounds - 1}") for n in runs}
        figures = {name: summary(name, runs, last) for name in JOBS}
    for name, found in figures.items():
        for clock in ("wall", "cpu"):
            seconds = found[f"{clock}_seconds_per_step"]
            print(f"{name}: {seconds[1]:.3f} {clock} s a step in one process, {seconds[2]:.3f} in the first of two")
        print(
            f"{name}: largest difference of losses {found['largest_loss_difference']:.1e}, of weights "
            f"{found['largest_weight_difference']:.1e}; mixture weights identical on both: "
            f"{found['mixture_weights_identical_on_both_processes']}"
        )
    load = {"before": load_before, "after": os.getloadavg()}
    cores = len(os.sched_getaffinity(0))
    print(f"load before and after: {load['before'][0]:.1f}, {load['after'][0]:.1f} on {cores} cores")
    print(write_json("distributed", {"batch": BATCH, "cores": cores, "load": load, **figures}))


if __name__ == "__main__":
    main()
