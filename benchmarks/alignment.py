"""Does alignment help? Vertices and supernets of two small pretrained models, untranslated and aligned.

    python benchmarks/alignment.py                 # about a quarter of an hour on one core, three seeds
    python benchmarks/alignment.py --heldout       # does it ever harm? ten minutes on one core, three seeds

A GPT-Neo and a Mamba (four layers, widths 64 and 80, one tokenizer) are pretrained on the standard library's source
and cut into two blocks. The figures are losses on held-out text, in nats per token.
Bar: ridge regression beats 60 gradient steps on the projector, in less time.

With ``--heldout``: the three mixings and all pairs of these families, from much and from little calibration text, at
equal weights: the loss before, with one weak ridge for every projector and nothing withdrawn, and as alignment leaves
it, on its own held-out text and on text that nothing was chosen on. Bar: it never rises on its own held-out text.
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
from pairs import TEXT_BYTES, TOKENS, pretrained, pretrained_pair
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


PAIRS = [
    (("gpt_neo", 0), ("mamba", 0)),
    (("mamba", 1), ("gpt_neo", 1)),
    (("gpt_neo", 0), ("gpt_neo", 1)),
    (("mamba", 0), ("mamba", 1)),
]
MIXINGS = ["translated", "routed", "gated"]
LITTLE = 2048
"""Tokens for widths of 64 and 80: as many per channel as 16 k for 576 and 640."""


def heldout_rows(pretrain_steps: int, seed: int) -> list[dict[str, Any]]:
    """A row per pair, mixing and amount of calibration text, of parents and calibration text of one seed."""
    paths = {
        (family, which): pretrained(family, 2 * seed + which, steps=pretrain_steps)
        for family in ("gpt_neo", "mamba")
        for which in (0, 1)
    }
    tokenizer = load_tokenizer(paths["gpt_neo", 0])
    task = load_task("text", tokenizer=tokenizer, source="stdlib", length=TOKENS, max_bytes=TEXT_BYTES)
    calibration = task.data["train"].shuffle(seed=seed)
    rows = []
    for pair in PAIRS:
        for mixing in MIXINGS:
            fresh = manticore.combine([paths[parent] for parent in pair], num_blocks=2, mixing=mixing)
            fresh.set_mixture_weights([[0.5, 0.5], [0.5, 0.5]])
            before = manticore.evaluate(fresh, task, split="test", max_examples=EVALUATION)["loss"]
            for tokens in (CALIBRATION, LITTLE):
                row: dict[str, Any] = {
                    "seed": seed,
                    "pair": "/".join(family for family, _ in pair),
                    "mixing": mixing,
                    "tokens": tokens,
                }
                for name, options in (("one ridge", {"ridge": 1e-4, "withdraw": False}), ("aligned", {})):
                    hybrid = copy.deepcopy(fresh)
                    report = manticore.align(hybrid, calibration, tokens=tokens, **options)
                    found = {
                        "heldout": report.loss_after,
                        "test": manticore.evaluate(hybrid, task, split="test", max_examples=EVALUATION)["loss"],
                        "r2_heldout": [t.r2_heldout for t in report.translations if t.source != t.target],
                        "kept": [t.kept for t in report.translations],
                        "withdrawn": len(report.withdrawn),
                        "flops": report.flops,
                    }
                    row |= {"heldout before": report.loss_before, "test before": before, name: found}
                rows.append(row)
    return rows


def raised(rows: list[dict[str, Any]], how: str) -> list[float]:
    """By how much the held-out loss has risen, where it has."""
    gaps = [row[how]["heldout"] - row["heldout before"] for row in rows]
    return [gap for gap in gaps if not gap <= 0]


def never_harms(pretrain_steps: int, seeds: int) -> int:
    """Print the table of ``--heldout``, write the JSON, and fail where a held-out loss rises."""
    rows = [row for seed in range(seeds) for row in heldout_rows(pretrain_steps, seed)]
    console = Console(width=150)
    columns = (
        "seed",
        "pair",
        "mixing",
        "tokens",
        "before",
        "one ridge",
        "aligned",
        "test: before",
        "one ridge",
        "aligned",
    )
    table = Table(*columns, "least R²: one ridge", "chosen", "withdrawn", title="held-out loss at equal weights")
    for row in rows:
        one, aligned = row["one ridge"], row["aligned"]
        losses = [row["heldout before"], one["heldout"], aligned["heldout"], row["test before"], one["test"]]
        table.add_row(
            str(row["seed"]),
            row["pair"],
            row["mixing"],
            f"{row['tokens']:,}",
            *(f"{loss:.3f}" for loss in [*losses, aligned["test"]]),
            *(f"{min(found['r2_heldout']):.2f}" for found in (one, aligned)),
            f"{aligned['withdrawn']} of {len(aligned['kept'])}",
        )
    console.print(table)
    for how in ("one ridge", "aligned"):
        for mixing in MIXINGS:
            of_mixing = [row for row in rows if row["mixing"] == mixing]
            gaps = raised(of_mixing, how)
            said = f", by {min(gaps):.3f} to {max(gaps):.3f}" if gaps else ""
            console.print(f"{how}, {mixing}: the held-out loss rises in {len(gaps)} of {len(of_mixing)}{said}")
        tested = [row[how]["test"] - row["test before"] for row in rows]
        console.print(f"{how}: on text that nothing was chosen on it rises in {sum(gap > 0 for gap in tested)}")
    met = not raised(rows, "aligned")
    console.print(f"the held-out loss never rises: {met}")
    console.print(f"written to {write_json('alignment_heldout', {'rows': rows, 'met': met})}")
    return 0 if met else 1


def main() -> int:
    """Print the table, write the JSON, and fail where ridge does not beat the gradient steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--heldout", action="store_true", help="losses before and after on mixings and pairs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.heldout:
        return never_harms(arguments.pretrain_steps, arguments.seeds)
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
