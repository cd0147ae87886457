"""What a trial of an architecture search takes beside its training steps: a trial, and a bare loop of torch as long.

CPU seconds of one thread, both in turns in one process.

    python benchmarks/design_overhead.py
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
from measure import interleaved, paired_ratio, write_json
from torch.nn import functional

from manticore.design_settings import Design
from manticore.kernels.mamba import fast_scan
from manticore.search.designs.training import DesignTraining, Made
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM

LISTS = {
    "MMMMMM": ["swiglu"] * 6,
    "AMAMAM": ["mh-attention", "swiglu"] * 3,
    "SSSSSS": ["mamba"] * 6,
}


def making(layers: list[str], width: int) -> Made:
    def make(*, vocab_size: int, positions: int) -> StackConfig:
        return StackConfig(layers=layers, vocab_size=vocab_size, hidden_size=width, max_position_embeddings=positions)

    return make


def bare(training: DesignTraining, make: Made) -> None:
    """As many steps of AdamW on as many sequences, and nothing else."""
    settings, task = training.settings, training.task
    rows = settings.steps * settings.batch_size
    columns = task.data["train"].with_format("numpy")[:rows]
    ids, targets = (torch.tensor(columns[name]).split(settings.batch_size) for name in ("input_ids", "targets"))
    model = StackForCausalLM(training.config(make)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    with fast_scan(model):
        for x, y in zip(ids, targets):
            logits = model(input_ids=x, use_cache=False).logits
            functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training = DesignTraining(Design(steps=arguments.steps), cpu=True)
    training.prepare()
    rows = []
    for name, layers in LISTS.items():
        make = making(layers, arguments.width)
        candidates = {"trial": partial(training.of_config, make, name), "bare": partial(bare, training, make)}
        taken = interleaved(candidates, rounds=arguments.rounds, warmup=0)
        share = paired_ratio(taken["trial"], taken["bare"]) - 1
        middle = {what: statistics.median(seconds) for what, seconds in taken.items()}
        print(f"{name}: a trial {middle['trial']:.2f} CPU s, a bare loop {middle['bare']:.2f}, {share:+.0%}")
        rows.append({"layers": name, **taken})
    write_json("design_overhead", {"settings": vars(arguments), "rows": rows})


if __name__ == "__main__":
    main()
