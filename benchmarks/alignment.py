"""Does alignment help? Vertices and supernets of two small pretrained models, untranslated and aligned.

    python benchmarks/alignment.py                 # about a quarter of an hour on one core, three seeds

A GPT-Neo and a Mamba (four layers, widths 64 and 80, one tokenizer) are pretrained on the standard library's source
and cut into two blocks. The figures are losses on held-out text, in nats per token.
Bar: ridge regression beats 60 gradient steps on the projector, in less time.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import write_json
from pairs import TEXT_BYTES, TOKENS, pretrained_pair
from rich.console import Console
from rich.table import Table

import manticore
from manticore.components.loading import load_component, load_tokenizer
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.tasks.task import Task, load_task
from manticore.training.budget import flops_per_step

BATCH, STEPS, FULL_STEPS, CALIBRATION, EVALUATION = 16, 60, 160, 65_536, 256
VERTICES = {"GPT-Neo→Mamba": [0, 1], "Mamba→GPT-Neo": [1, 0]}
Figures = dict[str, dict[str, float]]


class Seed:
    """All figures of one pair of pretrained models."""

    def __init__(self, seed: int, pretrain_steps: int) -> None:
        self.seed = seed
        self.paths = pretrained_pair(seed, steps=pretrain_steps)
        tokenizer = load_tokenizer(self.paths[0])
        self.task: Task = load_task("text", tokenizer=tokenizer, source="stdlib", length=TOKENS, max_bytes=TEXT_BYTES)
        self.calibration = self.task.data["train"].shuffle(seed=seed)
        self.parents = [load_component(path) for path in self.paths]
        self.budget = FULL_STEPS * flops_per_step(self.parents[0], BATCH, TOKENS)
        self.losses: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def loss(self, model: Any) -> float:
        """Held-out loss."""
        return manticore.evaluate(model, self.task, split="test", max_examples=EVALUATION)["loss"]

    def hybrid(self, mixing: str, **options: Any) -> ManticoreForCausalLM:
        """A fresh supernet of two blocks."""
        return manticore.combine(
            list(self.paths), num_blocks=2, mixing=mixing, projector_options=options or None, seed=self.seed
        )

    def align(self, hybrid: ManticoreForCausalLM) -> ManticoreForCausalLM:
        """Closed-form alignment on 65,536 tokens."""
        manticore.align(hybrid, self.calibration, tokens=CALIBRATION, seed=self.seed)
        return hybrid

    def train(self, model: Any, **options: Any) -> Any:
        """A fine-tuned copy."""
        model = copy.deepcopy(model)
        manticore.finetune(
            model, self.task, batch_size=BATCH, lr=1e-3, seed=self.seed, test_examples=EVALUATION, **options
        )
        return model

    def timed(self, name: str, run: Callable[[], Any]) -> Any:
        """Run and keep the seconds of process CPU time."""
        start = time.process_time()
        result = run()
        self.seconds[name] = time.process_time() - start
        return result

    def measure(self) -> None:
        """Fill :attr:`losses`."""
        losses = self.losses
        for name, parent in zip(("GPT-Neo", "Mamba"), self.parents):
            losses[f"{name}, as pretrained"] = self.loss(parent)
            losses[f"{name}, {FULL_STEPS} steps"] = self.loss(self.train(parent, budget_flops=self.budget))
        losses["ensemble of the parents, no training"] = self.loss(self.hybrid("routed"))
        self.vertices()
        for mixing in ("translated", "routed", "gated"):
            self.supernets(mixing)

    def vertices(self) -> None:
        """One component per block: what reaches the second block is translated, or not."""
        plain, default = self.hybrid("translated"), self.hybrid("translated", init="default")
        aligned = self.timed("ridge (all projectors)", lambda: self.align(self.hybrid("translated")))
        for vertex, path in VERTICES.items():
            short = {name: manticore.discretize(hybrid, path) for name, hybrid in
                     (("identity", plain), ("default", default), ("ridge", aligned))}  # fmt: skip
            self.losses[f"{vertex}: untranslated (identity)"] = self.loss(short["identity"])
            self.losses[f"{vertex}: ridge"] = self.loss(short["ridge"])
            for name, hybrid in short.items():
                trained = self.timed(
                    f"{vertex}: {name} + {STEPS} steps",
                    lambda hybrid=hybrid: self.train(hybrid, steps=STEPS, trainable="projectors"),
                )
                self.losses[f"{vertex}: {name} + {STEPS} projector steps"] = self.loss(trained)
            for name in ("identity", "ridge"):
                full = self.train(short[name], budget_flops=self.budget)
                self.losses[f"{vertex}: {name}, fully fine-tuned"] = self.loss(full)

    def supernets(self, mixing: str) -> None:
        """All components in every block, at equal weights (routed: also at R = I, its start)."""
        for init in ("identity", "default", "ridge"):
            hybrid = self.hybrid(mixing, **({"init": "default"} if init == "default" else {}))
            if init == "ridge":
                self.align(hybrid)
            hybrid.set_mixture_weights([[0.5, 0.5], [0.5, 0.5]])
            self.losses[f"supernet, {mixing}, equal weights: {init}"] = self.loss(hybrid)
            trained = self.train(hybrid, steps=STEPS, trainable="projectors")
            self.losses[f"supernet, {mixing}, equal weights: {init} + {STEPS} projector steps"] = self.loss(trained)
            if init == "ridge":
                full = self.train(hybrid, budget_flops=self.budget)
                self.losses[f"supernet, {mixing}, equal weights: {init}, fully fine-tuned"] = self.loss(full)
        if mixing == "routed":
            hybrid = self.align(self.hybrid(mixing))
            full = self.train(hybrid, budget_flops=self.budget)
            self.losses["supernet, routed, R = I: fully fine-tuned"] = self.loss(full)


def summary(per_seed: list[dict[str, float]]) -> Figures:
    """Mean and half width of the 95 % interval over the seeds."""
    # two-sided Student t at 95 % for 1, 2, ... degrees of freedom
    student = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
    figures: Figures = {}
    for name in per_seed[0]:
        values = [seed[name] for seed in per_seed]
        half = (
            student[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
            if len(values) > 1
            else math.nan
        )
        figures[name] = {"mean": statistics.fmean(values), "half": half}
    return figures


def main() -> int:
    """Print the table, write the JSON, and fail where ridge does not beat the gradient steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = []
    for number in range(arguments.seeds):
        seed = Seed(number, arguments.pretrain_steps)
        seed.measure()
        seeds.append(seed)
    losses = summary([seed.losses for seed in seeds])
    seconds = summary([seed.seconds for seed in seeds])
    console = Console()
    table = Table("model", "loss", "± 95 %", title=f"held-out loss, {len(seeds)} seeds")
    for name, row in losses.items():
        table.add_row(name, f"{row['mean']:.3f}", f"{row['half']:.3f}")
    console.print(table)
    times = Table("job", "CPU seconds")
    for name, row in seconds.items():
        times.add_row(name, f"{row['mean']:.1f}")
    console.print(times)
    met = all(
        seed.losses[f"{vertex}: ridge"] < seed.losses[f"{vertex}: {init} + {STEPS} projector steps"]
        and seed.seconds["ridge (all projectors)"] < seed.seconds[f"{vertex}: {init} + {STEPS} steps"]
        for seed in seeds
        for vertex in VERTICES
        for init in ("identity", "default")
    )
    console.print(f"ridge beats {STEPS} gradient steps, in less time, for every seed: {met}")
    payload = {"losses": losses, "seconds": seconds, "per_seed": [seed.losses for seed in seeds], "met": met}
    console.print(f"written to {write_json('alignment', payload)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
