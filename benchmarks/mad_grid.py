"""The six runs of a MAD setting: time in one pass over time one after another, and how far their losses differ.

    python benchmarks/mad_grid.py                 # a few minutes on one core; takes an accelerator if there is one

Each candidate trains the six points of the published grid for one epoch of a few batches of 128 on the baseline
setting of in-context recall, and scores them once. On a CPU process time is compared, on an accelerator elapsed time;
both ways run in turn, round by round. A model that cannot train its copies in one pass is listed with the reason.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from measure import paired_ratio, write_json

from manticore.kernels.mamba import use_selective_scan
from manticore.runs.mad_models import Candidate
from manticore.tasks.mad import generate
from manticore.tasks.mad_protocol import PROTOCOLS
from manticore.training.mad_runs import Outcome, train_runs
from manticore.training.stacked import why_not_stacked

MODELS = ("transformer", "hyena-swiglu", "striped-mh-hyena-swiglu", "mh-gla-swiglu", "mamba")


def measure(name: str, *, steps: int, batch_size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Median seconds of both ways, their ratio, and the largest difference between their losses."""
    data = generate("in-context-recall", num_train_examples=steps * batch_size, num_test_examples=128, cache=False)
    protocol = replace(PROTOCOLS["published"], epochs=1, batch_size=batch_size)
    model = Candidate(name).build(vocab_size=16, positions=128, seed=0).to(device)  # type: ignore[arg-type]
    use_selective_scan(model)
    reason = why_not_stacked(model, torch.from_numpy(data["train"][0][:2]).to(device))
    if reason is not None:
        return {"model": name, "one_pass": False, "reason": reason}

    def run(stacked: bool) -> tuple[float, list[Outcome]]:
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        # reading the scores waits for the device
        found = train_runs(model, data, protocol.grid, protocol, stacked=stacked, bf16=device.type == "cuda")
        return clock() - start, found

    seconds: dict[bool, list[float]] = {True: [], False: []}
    for round_ in range(rounds + 1):
        outcomes = {}
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


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    sizes = {"steps": arguments.steps, "batch_size": arguments.batch_size, "rounds": arguments.rounds}
    print(f"{device.type}, {sizes}")
    print(f"{'model':28} {'one pass s':>11} {'one by one s':>13} {'ratio':>7} {'loss differs by':>16}")
    rows = []
    for name in arguments.models:
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
    where = device.type if device.type == "cpu" else torch.cuda.get_device_name(0)
    print(write_json(f"mad_grid_{device.type}", {"device": where, **sizes, "models": rows}))


if __name__ == "__main__":
    main()
