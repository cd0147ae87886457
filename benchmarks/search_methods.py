"""Which search finds the best path? Every method against the true optimum: all paths through two blocks, fine-tuned.

    python benchmarks/search_methods.py          # about an hour on one core, three seeds, two tasks

A GPT-Neo and a Mamba of four layers (widths 64 and 80, pretrained by the script) are cut into two blocks and aligned.
On each task every one of the four paths is fine-tuned with the same number of FLOPs; each method searches with the
same number of supernet steps and picks one of them. Regret is how much the chosen path scores below the best, in the
task's metric.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
from collections import Counter
from typing import Any

import torch
from measure import RESULTS, write_json
from pairs import TEXT_BYTES, pretrained_pair
from rich.console import Console
from rich.table import Table

import manticore
from manticore.components.loading import load_tokenizer
from manticore.experiments.landscapes import Landscape, landscape
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.tasks.corpus import read_corpus
from manticore.tasks.task import Task, load_task
from manticore.training.budget import flops_per_step

BLOCKS, EVALUATION = 2, 256
TASKS: dict[str, dict[str, Any]] = {
    "mad/in-context-recall": {"seq_len": 64},
    "text": {"length": 64, "max_bytes": TEXT_BYTES},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "translated, darts simultaneous": {"method": "darts"},
    "translated, darts alternating": {"method": "darts", "order": "alternating"},
    "translated, darts bilevel": {"method": "darts", "order": "bilevel"},
    "translated, dash": {"method": "dash"},
    "translated, gaea": {"method": "gaea"},
    "routed, darts simultaneous": {"mixing": "routed", "method": "darts"},
    "routed, dash": {"mixing": "routed", "method": "dash"},
    "translated, dash, mixture lr 0.05": {"method": "dash", "mixture_lr": 0.05},
}


class Trial:
    """One task and one seed."""

    def __init__(self, task: Task, seed: int, arguments: argparse.Namespace) -> None:
        self.task, self.seed, self.arguments = task, seed, arguments
        self.paths = pretrained_pair(seed, steps=arguments.pretrain_steps)
        self.aligned = {mixing: self.align(mixing) for mixing in ("translated", "routed")}
        small = manticore.discretize(self.supernet("translated"), [0] * BLOCKS)
        self.budget = arguments.steps * flops_per_step(small, arguments.batch_size, task.length)

    def supernet(self, mixing: str) -> ManticoreForCausalLM:
        """A copy of the aligned supernet."""
        return copy.deepcopy(self.aligned[mixing])

    def align(self, mixing: str) -> ManticoreForCausalLM:
        """Aligned, with the vocabulary of the task."""
        hybrid = manticore.combine(list(self.paths), num_blocks=BLOCKS, mixing=mixing, seed=self.seed)
        manticore.align(hybrid, read_corpus("stdlib", max_bytes=TEXT_BYTES), tokens=32_768, seed=self.seed)
        if self.task.vocab_size is not None:
            hybrid.with_vocabulary(self.task.vocab_size, seed=self.seed)
        return hybrid

    def score(self, model: Any) -> dict[str, float]:
        """Metrics on held-out data."""
        return manticore.evaluate(model, self.task, split="test", max_examples=EVALUATION)

    def landscape(self) -> Landscape:
        """Every path, fine-tuned at the same compute: the ground truth."""
        return landscape(
            self.supernet("translated"), self.task, budget_flops=self.budget, batch_size=self.arguments.batch_size,
            lr=self.arguments.lr, seed=self.seed, test_examples=EVALUATION,
        )  # fmt: skip

    def search(self, options: dict[str, Any], truth: Landscape) -> dict[str, Any]:
        """One search."""
        settings = dict(options)
        supernet = self.supernet(settings.pop("mixing", "translated"))
        result = manticore.search(
            supernet, self.task, steps=self.arguments.search_steps, batch_size=self.arguments.batch_size,
            lr=self.arguments.lr, seed=self.seed, **settings,
        )  # fmt: skip
        return {
            "path": name(result.path),
            "weights": result.weights.tolist(),
            "soft": self.score(supernet),
            "discretized": self.score(manticore.discretize(supernet)),
            "finetuned": truth.metrics[tuple(result.path)],
            "regret": truth.shortfall(result.path),
            "seconds": result.seconds,
        }


def name(path: Any) -> str:
    """``GM`` for a GPT-Neo block and then a Mamba block."""
    return "".join("GM"[m] for m in path)


def run(task_name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One task and one seed: the ground truth and every search."""
    pair = pretrained_pair(seed, steps=arguments.pretrain_steps)
    task = load_task(task_name, tokenizer=load_tokenizer(pair[0]), **TASKS[task_name])
    trial = Trial(task, seed, arguments)
    # at a vertex the translated and the routed mixing are the same hybrid
    truth = trial.landscape()
    searches = {label: trial.search(options, truth) for label, options in SEARCHES.items()}
    return {
        "task": task_name, "seed": seed, "metric": task.primary_metric, "higher": task.higher_is_better,
        "vertices": {name(path): metrics for path, metrics in truth.metrics.items()}, "searches": searches,
    }  # fmt: skip


def finished(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Trials that an earlier call with the same settings left."""
    path = RESULTS / "search_methods.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept["trials"] if kept.get("settings") == settings else []


def tables(task: str, seeds: list[dict[str, Any]]) -> list[Table]:
    """The ground truth, and the methods with their regret."""
    metric = seeds[0]["metric"]
    truth = Table("path", *(f"seed {trial['seed']}" for trial in seeds), title=f"{task}: {metric} of every path")
    for path in seeds[0]["vertices"]:
        truth.add_row(path, *(f"{seed['vertices'][path][metric]:.3f}" for seed in seeds))
    methods = Table(
        "method", "paths", f"soft {metric}", "discretized", "fine-tuned", "regret, mean", "worst", "seconds",
        title=f"{task}: methods, mean of {len(seeds)} seeds",
    )  # fmt: skip
    for label in SEARCHES:
        rows = [seed["searches"][label] for seed in seeds]
        paths = ", ".join(f"{path}×{count}" for path, count in Counter(row["path"] for row in rows).most_common())
        regrets = [row["regret"] for row in rows]
        means = [statistics.fmean(row[stage][metric] for row in rows) for stage in ("soft", "discretized", "finetuned")]
        methods.add_row(
            label, paths,
            *(f"{mean:.3f}" for mean in means),
            f"{statistics.fmean(regrets):.3f}", f"{max(regrets):.3f}",
            f"{statistics.fmean(row['seconds'] for row in rows):.0f}",
        )  # fmt: skip
    blind = [Landscape(seed["vertices"], metric, seed["higher"]).blind_shortfall for seed in seeds]
    methods.add_row("a path drawn blindly", "", "", "", "", f"{statistics.fmean(blind):.3f}", "", "")
    return [truth, methods]


def main() -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=300, help="fine-tuning steps of GPT-Neo alone; others match its FLOPs"
    )
    parser.add_argument("--search-steps", type=int, default=500, help="training steps of the supernet in each search")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {key: value for key, value in vars(arguments).items() if key != "seeds"}
    trials = finished(settings)
    done = {(trial["task"], trial["seed"]) for trial in trials}
    for seed, task in itertools.product(range(arguments.seeds), TASKS):
        if (task, seed) not in done:
            trials.append(run(task, seed, arguments))
            # kept at once, so that a call that was cut short is continued by the next one
            written = write_json("search_methods", {"settings": settings, "trials": trials})
            print(f"{task}, seed {seed}: written to {written}", flush=True)
    console = Console()
    for task in TASKS:
        for table in tables(task, [trial for trial in trials if trial["task"] == task]):
            console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
