"""Distillation at equal FLOPs: the path mamba→gpt trained on a task, with and without a teacher.

    python benchmarks/distillation.py [--seeds 3] [--only NAME …]      # about half an hour of one core; resumes

Tiny models that were pretrained on the standard library's source are cut into two blocks and aligned (``two-sources``:
the GPT on that, the Mamba on English out of docstrings; half and half of unseen text of both). Every row then spends
the same training FLOPs on the discretized path, the teacher's forward passes included: fine-tuned alone, or distilled
in one or both phases, from the supernet, from the better parent or from the parents' Bayesian interpolation, or
distilled for a quarter and fine-tuned for the rest. A budget is named after the steps of 16 sequences that it buys for
the GPT. Each cell is the best of three learning rates by loss on validation text; what is shown is the loss on the test
split. On recall, whose vocabulary is new to all of them, the teachers are first fine-tuned for 300 steps, which is not
in the budgets: the row ``fine-tuned, teacher's training too`` has what a fine-tuning would have that spends that too.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from landscapes import CASES, MIXTURE, Case, parents, prepared
from measure import RESULTS, write_json
from pairs import TOKENS
from rich.console import Console
from rich.table import Table

import manticore
from manticore.training.budget import flops_per_step

FILE = RESULTS / "distillation.json"
PATH = [1, 0]
RATES = (1e-3, 2e-3, 4e-3)
EXAMPLES = 256
BATCH = 16
TEACHER_STEPS = 300


@dataclass(frozen=True)
class Setting:
    """A task, and how long students train on it."""

    case: Case
    budgets: tuple[int, ...]
    trained_teacher: bool = False
    """Whether teachers have to learn the task first."""
    teachers: tuple[str, ...] = ("supernet", "parent 0", "parent 1")


MIXED_TEXT = replace(CASES["two-sources-64"], options={"length": TOKENS, **MIXTURE})
SETTINGS = {
    "two-sources": Setting(MIXED_TEXT, (25, 75), teachers=("supernet", "parent 0", "parent 1", "interpolation")),
    "recall": Setting(CASES["recall-64"], (200,), trained_teacher=True),
}


class Bench:
    """One task and one seed: parents, supernet and student, ready to train.

    Args:
        name: of the task.
        seed: of parents and students.
        work: where trained teachers are kept.
    """

    def __init__(self, name: str, seed: int, work: Path) -> None:
        self.setting, self.seed = SETTINGS[name], seed
        self.supernet, self.task = prepared(self.setting.case, seed)
        self.parents = [manticore.discretize(self.supernet, [k] * self.setting.case.blocks) for k in range(2)]
        self.step = flops_per_step(self.parents[0].requires_grad_(True), BATCH, self.task.length)
        self.place = work / f"{name}-{seed}"
        self._teachers: dict[str, Any] = {}
        scores = [self.loss(self.teacher(f"parent {k}"), "validation") for k in range(2)]
        self.better = f"parent {scores.index(min(scores))}"

    def loss(self, model: Any, split: str) -> float:
        """On held-out examples."""
        return manticore.evaluate(model, self.task, split=split, max_examples=EXAMPLES)["loss"]

    def teacher(self, which: str) -> Any:
        """The supernet or a parent, that has learned the task where it has to."""
        if which not in self._teachers:
            if which == "interpolation":
                case = self.setting.case
                start = manticore.combine(
                    parents(case, self.seed), num_blocks=case.blocks, output="bayes", forgetting=0.0
                )
            else:
                start = self.supernet if which == "supernet" else self.parents[int(which[-1])]
            self._teachers[which] = self._trained(which, start) if self.setting.trained_teacher else start
        return self._teachers[which]

    def _trained(self, which: str, start: Any) -> Any:
        folder = self.place / which.replace(" ", "-")
        if not folder.exists():
            budget = TEACHER_STEPS * self.step
            model = copy.deepcopy(start)
            manticore.finetune(model, self.task, budget_flops=budget, lr=2e-3, batch_size=BATCH, seed=self.seed)
            model.save_pretrained(folder)
        return type(start).from_pretrained(folder)

    def finetuned(self, student: Any, flops: float, rate: float) -> None:
        """Train without a teacher."""
        manticore.finetune(
            student, self.task, budget_flops=flops, lr=rate, batch_size=BATCH, seed=self.seed, test_examples=1
        )

    def distilled(self, student: Any, teacher: str, flops: float, rate: float, **options: Any) -> float:
        """Train with a teacher; returns the FLOPs that it took."""
        return manticore.distill(
            student, self.teacher(teacher), self.task, budget_flops=flops, lr=rate, batch_size=BATCH, seed=self.seed,
            test_examples=1, **options,
        ).flops  # fmt: skip


def _then(bench: Bench, student: Any, teacher: str, flops: float, rate: float, **options: Any) -> None:
    """A quarter of the budget with a teacher, the rest without."""
    spent = bench.distilled(student, teacher, flops / 4, rate, **options)
    bench.finetuned(student, flops - spent, rate)


ROWS: dict[str, Callable[[Bench, Any, float, float], Any]] = {
    "fine-tuned": lambda b, s, f, r: b.finetuned(s, f, r),
    "blocks for a quarter, then fine-tuned": lambda b, s, f, r: _then(b, s, "supernet", f, r, phases="blocks"),
    "both phases for a quarter, then fine-tuned": lambda b, s, f, r: _then(b, s, "supernet", f, r, phases="both"),
    "both phases, supernet": lambda b, s, f, r: b.distilled(s, "supernet", f, r, phases="both"),
    "logits, supernet": lambda b, s, f, r: b.distilled(s, "supernet", f, r, phases="logits"),
    "logits, better parent": lambda b, s, f, r: b.distilled(s, b.better, f, r, phases="logits"),
}
MIXED = {
    **ROWS,
    "logits, interpolation": lambda b, s, f, r: b.distilled(s, "interpolation", f, r, phases="logits"),
}
"""Row → how a student spends a budget at a rate."""
SUNK = "fine-tuned, teacher's training too"


def key(name: str, seed: int, row: str, budget: int, rate: float) -> str:
    """Of one run in the record."""
    return f"{name} | {seed} | {row} | {budget} | {rate}"


def measure(name: str, seed: int, work: Path, runs: dict[str, Any]) -> None:
    """Every run of a task and a seed that is missing."""
    setting = SETTINGS[name]
    rows = MIXED if "interpolation" in setting.teachers else ROWS
    jobs = [(row, budget, rate) for budget in setting.budgets for row in rows for rate in RATES]
    if setting.trained_teacher:
        jobs += [(SUNK, setting.budgets[-1], rate) for rate in RATES]
    missing = [job for job in jobs if key(name, seed, *job) not in runs]
    before = f"{name} | {seed} | untrained"
    if not missing and before in runs:
        return
    bench = Bench(name, seed, work)
    student = manticore.discretize(bench.supernet, PATH)
    teachers = {which: bench.loss(bench.teacher(which), "test") for which in setting.teachers}
    runs[before] = {"student": bench.loss(student, "test"), **teachers}
    for row, budget, rate in missing:
        learner = copy.deepcopy(student)
        extra = TEACHER_STEPS if row == SUNK else 0
        rows["fine-tuned" if extra else row](bench, learner, (budget + extra) * bench.step, rate)
        found = {split: bench.loss(learner, split) for split in ("validation", "test")}
        if setting.trained_teacher:
            found["accuracy"] = manticore.evaluate(learner, bench.task, max_examples=EXAMPLES)["accuracy"]
        runs[key(name, seed, row, budget, rate)] = found
        print(f"{name}, seed {seed}, {row}, {budget} steps, {rate:g}: {found['test']:.3f}", flush=True)
        write_json("distillation", {"runs": runs})


def best(runs: dict[str, Any], name: str, seed: int, row: str, budget: int) -> tuple[float, dict[str, float]] | None:
    """The rate that is best on validation text, and what it gave; None where a rate is missing."""
    found = [(rate, runs.get(key(name, seed, row, budget, rate))) for rate in RATES]
    if any(value is None for _, value in found):
        return None
    return min(found, key=lambda pair: pair[1]["validation"])  # type: ignore[index, return-value]


def table(runs: dict[str, Any], name: str, seeds: list[int]) -> Table:
    """Loss on the test split, mean over seeds, and how each seed differs from fine-tuning alone."""
    setting = SETTINGS[name]
    titles = [f"{budget} steps" for budget in setting.budgets]
    result = Table("row", "untrained", *titles, title=f"{name}: test loss, seeds {seeds} (difference per seed)")
    untrained = [runs[f"{name} | {seed} | untrained"] for seed in seeds]
    for row in [*(MIXED if "interpolation" in setting.teachers else ROWS), *[SUNK] * setting.trained_teacher]:
        cells = []
        for budget in setting.budgets:
            found = [best(runs, name, seed, row, budget) for seed in seeds]
            alone = [best(runs, name, seed, "fine-tuned", budget) for seed in seeds]
            if any(value is None for value in (*found, *alone)):
                cells.append("")
                continue
            losses = [value["test"] for _, value in found]  # type: ignore[misc]
            gaps = [loss - value["test"] for loss, (_, value) in zip(losses, alone)]  # type: ignore[misc]
            said = f"{sum(losses) / len(losses):.3f}"
            if row != "fine-tuned":
                said += f" ({' '.join(f'{gap:+.3f}' for gap in gaps)})"
            if setting.trained_teacher:
                said += f", accuracy {sum(v['accuracy'] for _, v in found) / len(found):.2f}"  # type: ignore[misc]
            cells.append(said)
        start = f"{sum(each['student'] for each in untrained) / len(untrained):.3f}" if row == "fine-tuned" else ""
        result.add_row(row, start, *cells)
    for which in setting.teachers:
        loss = sum(each[which] for each in untrained) / len(untrained)
        result.add_row(f"teacher: {which}", f"{loss:.3f}", *[""] * len(titles))
    return result


def shown(runs: dict[str, Any], name: str, seeds: int) -> Iterator[Table]:
    """The table of the seeds that have been begun, if any has."""
    begun = [seed for seed in range(seeds) if f"{name} | {seed} | untrained" in runs]
    if begun:
        yield table(runs, name, begun)


def main() -> int:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--work", type=Path, default=Path("~/.cache/manticore/distillation").expanduser())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, Any] = json.loads(FILE.read_text())["runs"] if FILE.exists() else {}
    for seed in range(arguments.seeds):
        for name in arguments.only:
            measure(name, seed, arguments.work, runs)
    console = Console()
    for name in arguments.only:
        for found in shown(runs, name, arguments.seeds):
            console.print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
