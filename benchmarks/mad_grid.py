"""The six runs of a MAD setting: time in one pass over time one after another, where it goes, and what could be saved.

    python benchmarks/mad_grid.py                 # five minutes of one core; takes an accelerator if there is one
    python benchmarks/mad_grid.py --only steps    # the second part alone, a minute

Each candidate trains the six points of the published grid for one epoch of a few batches of 128 on the baseline
setting of in-context recall, and scores them once. On a CPU process time is compared, on an accelerator elapsed time;
both ways run in turn, round by round, and their losses are compared. Then, on a CPU, one step of each way is taken
apart by kind of operator, and a step of one run on two tokens shows what a step costs before any arithmetic: that, and
no more, is what six runs in one pass can save five times of six. The last table has smaller batches, down to those
where it matters. A model that cannot train its copies in one pass is listed with the reason.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from measure import interleaved, paired_ratio, write_json
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from manticore.experiments.mad.models import Candidate
from manticore.experiments.mad.training import TrainedRun, losses_and_gradients, train_runs
from manticore.kernels.mamba import fast_scan
from manticore.tasks.mad.examples import generate
from manticore.tasks.mad.protocol import PROTOCOLS
from manticore.training.stacked import StackedAdamW, StackedModel, why_not_stacked

MODELS = ("transformer", "striped-mh-hyena-swiglu", "mamba")
PROTOCOL = PROTOCOLS["published"]
RUNS = len(PROTOCOL.grid)
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot_product",),
    "convolutions": ("convolution", "_fft", "mkldnn_conv", "_slow_conv"),
    "scan": ("selective_scan",),
}
"""Kind → beginnings of operators' names; every other operator goes over its tensors element by element."""
SMALL = ((1, 2), (1, 32), (4, 32), (16, 32), (64, 32))
"""Sequences and their length, from the smallest to a quarter of the tokens of the smallest published step."""


def measure(name: str, *, steps: int, batch_size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Median seconds of both ways, their ratio, and the largest difference between their losses."""
    data = generate("in-context-recall", num_train_examples=steps * batch_size, num_test_examples=128, cache=False)
    protocol = replace(PROTOCOL, epochs=1, batch_size=batch_size)
    model = build(name, device)
    with fast_scan(model):
        reason = why_not_stacked(model, torch.from_numpy(data["train"][0][:2]).to(device))
    if reason is not None:
        return {"model": name, "one_pass": False, "reason": reason}

    def run(stacked: bool) -> tuple[float, list[TrainedRun]]:
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        # reading the scores waits for the device
        found = train_runs(model, data, protocol.grid, protocol, stacked=stacked, bf16=device.type == "cuda")
        return clock() - start, found

    seconds: dict[bool, list[float]] = {True: [], False: []}
    outcomes: dict[bool, list[TrainedRun]] = {}
    for round_ in range(rounds + 1):
        for stacked in (True, False):
            spent, outcomes[stacked] = run(stacked)
            if round_:
                seconds[stacked].append(spent)
    pairs = [
        (a.history[0][key], b.history[0][key])
        for a, b in zip(outcomes[True], outcomes[False])
        for key in ("train_loss", "loss")
    ]
    return {
        "model": name,
        "one_pass": True,
        "seconds_one_pass": statistics.median(seconds[True]),
        "seconds_one_by_one": statistics.median(seconds[False]),
        "ratio": paired_ratio(seconds[True], seconds[False]),
        "largest_relative_difference_of_losses": max(abs(a - b) / abs(b) for a, b in pairs),
    }


def build(name: str, device: torch.device) -> PreTrainedModel:
    """A new model for the baseline setting, in training mode."""
    return Candidate(name).build(vocab_size=16, positions=128, seed=0).to(device).train()  # type: ignore[arg-type]


class Steps:
    """Steps of `copies` runs in one pass on random tokens."""

    def __init__(self, model: PreTrainedModel, copies: int, sequences: int, length: int) -> None:
        self.copies = StackedModel(model, copies)
        self.optimizer = StackedAdamW(self.copies, [0.1] * copies, betas=PROTOCOL.betas)
        self.inputs, self.targets = torch.randint(0, 16, (2, sequences, length)).unbind()

    def gradients(self) -> dict[str, Tensor]:
        """Forward and backward."""
        return losses_and_gradients(self.copies, self.inputs, self.targets, bf16=False)[1]

    def update(self, gradients: dict[str, Tensor]) -> None:
        """The optimizer."""
        self.optimizer.step(gradients, [1e-3] * self.copies.copies)

    def __call__(self) -> None:
        self.update(self.gradients())


def split(model: PreTrainedModel, copies: int, sequences: int, length: int) -> dict[str, float]:
    """Milliseconds of a step per run, by kind of operator."""
    Steps(model, copies, 1, length)()
    steps = Steps(model, copies, sequences, length)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        start = time.process_time()
        gradients = steps.gradients()
        spent = (time.process_time() - start) * 1e3 / copies
    found = dict.fromkeys([*KINDS, "element by element"], 0.0)
    for event in watched.key_averages():
        plain = event.key.removeprefix("aten::").removeprefix("manticore::")
        kind = next((kind for kind, names in KINDS.items() if plain.startswith(names)), "element by element")
        found[kind] += event.self_cpu_time_total
    # the profiler's time is elapsed time, which counts what other processes take
    scale = spent / sum(found.values())
    found = {kind: value * scale for kind, value in found.items()}
    start = time.process_time()
    steps.update(gradients)
    found["optimizer"] = (time.process_time() - start) * 1e3 / copies
    return found


def per_run(model: PreTrainedModel, sequences: int, length: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step per run in both ways, and the ratio."""
    ways: dict[str, Callable[[], Any]] = {
        "one pass": Steps(model, RUNS, sequences, length),
        "alone": Steps(model, 1, sequences, length),
    }
    seconds = interleaved(ways, rounds=rounds)
    return {
        "sequences": sequences,
        "length": length,
        "ms_one_pass": statistics.median(seconds["one pass"]) * 1e3 / RUNS,
        "ms_alone": statistics.median(seconds["alone"]) * 1e3,
        "ratio": paired_ratio(seconds["one pass"], seconds["alone"]) / RUNS,
    }


def take_apart(name: str, batch_size: int) -> dict[str, Any]:
    """Where a step's time goes on a CPU, and the ratio that one pass cannot be below."""
    model = build(name, torch.device("cpu"))
    with fast_scan(model):
        ways = {"one_pass": split(model, RUNS, batch_size, 127), "alone": split(model, 1, batch_size, 127)}
        small = [per_run(model, sequences, length, 3) for sequences, length in SMALL]
    fixed, whole = small[0]["ms_alone"], sum(ways["alone"].values())
    least = 1 - (1 - 1 / RUNS) * fixed / whole
    return {
        "model": name,
        "ms_per_run": ways,
        "ms_of_a_step_on_two_tokens": fixed,
        "least_ratio": least,
        "small_batches": small,
    }


def main() -> None:
    """Print the tables and write their JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=("ratios", "steps"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    sizes = {"steps": arguments.steps, "batch_size": arguments.batch_size, "rounds": arguments.rounds}
    print(f"{device.type}, {sizes}")
    if arguments.only != "steps":
        rows = print_ratios(arguments.models, sizes, device)
        where = device.type if device.type == "cpu" else torch.cuda.get_device_name(0)
        print(write_json(f"mad_grid_{device.type}", {"device": where, **sizes, "models": rows}))
    if arguments.only != "ratios" and device.type == "cpu":
        parts = print_steps(arguments.models, arguments.batch_size)
        print(write_json("mad_grid_steps", {"batch_size": arguments.batch_size, "models": parts}))


def print_ratios(models: Sequence[str], sizes: dict[str, int], device: torch.device) -> list[dict[str, Any]]:
    """Measure and print the first table."""
    print(f"{'model':28} {'one pass s':>11} {'one by one s':>13} {'ratio':>7} {'loss differs by':>16}")
    rows = []
    for name in models:
        row = measure(name, device=device, **sizes)
        rows.append(row)
        if row["one_pass"]:
            print(
                f"{name:28} {row['seconds_one_pass']:11.2f} {row['seconds_one_by_one']:13.2f} {row['ratio']:7.2f} "
                f"{row['largest_relative_difference_of_losses']:16.1e}",
                flush=True,
            )
        else:
            print(f"{name:28} one by one only: {row['reason'][:80]}", flush=True)
    return rows


def print_steps(models: Sequence[str], batch_size: int) -> list[dict[str, Any]]:
    """Measure and print where the time of a step goes."""
    parts = []
    for name in models:
        part = take_apart(name, batch_size)
        parts.append(part)
        print(f"\n{name}: ms of a step per run of {batch_size} sequences, in one pass / alone")
        for kind, alone in part["ms_per_run"]["alone"].items():
            print(f"  {kind:20} {part['ms_per_run']['one_pass'][kind]:8.1f} {alone:8.1f}")
        print(
            f"  a step on two tokens {part['ms_of_a_step_on_two_tokens']:8.1f}: one pass ÷ one by one cannot be below "
            f"{part['least_ratio']:.3f}"
        )
        for row in part["small_batches"]:
            tokens = f"{row['sequences']} x {row['length']}"
            print(
                f"  batches of {tokens:>8} {row['ms_one_pass']:8.1f} {row['ms_alone']:8.1f} ratio {row['ratio']:.2f}",
                flush=True,
            )
    return parts


if __name__ == "__main__":
    main()
