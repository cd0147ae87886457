"""Hybrids that people designed beside hybrids that a search finds, from scratch, at equal compute.

    python benchmarks/hand_made_hybrids.py [--seeds 3] [--only NAME …]      # about 8 minutes of one core; it resumes

A GPT-Neo of two layers and a Mamba of four, random weights, width 64, are cut into two blocks and searched by the
default search; what it finds goes on training. Beside it train, with the same FLOPs, learning rate and warm-up, the
stacks of four or five layers of that width, MambaFormer, striped Mamba and a sandwich transformer, and the Mamba
alone. A unit is 100 steps of 16 sequences of the Mamba; the test split (256 examples) is scored at every half of a
unit, up to three and a half, or until two scores in a row reach 0.995, the last of which then stands. The tasks are
small: 32 tokens, eight symbols in recall, four tokens to copy. Two comparisons: "training" gives every row the same
FLOPs; "everything" also counts what the search spent on the paths that it did not choose, and on scoring. Writes
``benchmarks/results/hand_made_hybrids.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from measure import RESULTS, write_json
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

import manticore
from manticore.experiments.intervals import mean_interval
from manticore.stacks.modeling import StackForCausalLM
from manticore.stacks.presets import preset_config
from manticore.tasks.task import Task, load_task
from manticore.training.budget import flops_per_step
from manticore.training.shapes import build, small_config
from manticore.writing import write_json as write_record

TASKS: dict[str, dict[str, Any]] = {
    "mad/in-context-recall": {"seq_len": 32, "vocab_size": 8},
    "mad/selective-copying": {"seq_len": 32, "num_tokens_to_copy": 4},
}
WIDTH = 64
COMPONENTS = {"gpt_neo": 2, "mamba": 4}
"""Family → layers."""
STACKS = ("mambaformer", "striped-mamba", "sandwich-transformer")
FOUND = "found by the search"
PARENT = "mamba"
"""The component that is a row of its own: GPT-Neo alone learns neither task in the time."""
BATCH = 16
TUNING: dict[str, Any] = {"batch_size": BATCH, "lr": 3e-3, "warmup_steps": 10, "cpu": True}
UNIT_STEPS = 100
UNITS = 3.5
PER_UNIT = 2
"""Scores per unit."""
TOTALS = (1, 3.5)
"""Units that are compared."""
EXAMPLES = 256
LEARNED = 0.99
"""The accuracy at which a task is learned."""
ENOUGH = 0.995
"""Training ends where two scores in a row reach it."""
FILE = "hand_made_hybrids"


@dataclass
class Row:
    """A model's training on a task."""

    task: str
    model: str
    seed: int
    unit: int
    """FLOPs."""
    curve: list[tuple[float, float]]
    """Units of training, test accuracy."""
    spent: float = 0.0
    """Units that a search has cost beside the training of what it found."""
    path: list[int] | None = None
    parameters: int = 0

    def after(self, units: float) -> float | None:
        """The accuracy at the last score within so many units of training; None where the search was not over then."""
        reached = [score for at, score in self.curve if at <= units + 1e-9]
        return reached[-1] if reached else None

    @property
    def learned(self) -> float | None:
        """Units of training until the task was learned; None where it never was."""
        return next((at for at, score in self.curve if score >= LEARNED), None)


class _Learned(Exception):
    """Ends a training."""


def supernet(task: Task, seed: int) -> Any:
    """Both components from scratch, side by side in two blocks."""
    models: list[PreTrainedModel] = []
    for family, layers in COMPONENTS.items():
        torch.manual_seed(seed)
        models.append(build(small_config(family, layers=layers, width=WIDTH, positions=task.length)))
    return manticore.combine(models, num_blocks=2, vocab_size=task.vocab_size, seed=seed)


def stack(name: str, task: Task, seed: int) -> StackForCausalLM:
    """A designed hybrid with fresh weights."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "vocab_size": task.vocab_size, "max_position_embeddings": task.length,
        "layer_options": {"mh-attention": {"num_heads": 4}},
    }  # fmt: skip
    torch.manual_seed(seed)
    return StackForCausalLM(preset_config(name, **sizes))


def scored(
    train: Callable[..., Any], model: PreTrainedModel, task: Task, unit: int, seed: int, extra: Iterable[float] = ()
) -> list[tuple[float, float]]:
    """Train a model for all units, and score it on the way.

    Args:
        train: ``finetune`` with what is to be trained.
        model: the same, to be scored.
        task: the data.
        unit: FLOPs.
        seed: of the data order.
        extra: further places to score, in units.
    """
    step_flops = flops_per_step(model, BATCH, task.length)
    places = [half / PER_UNIT for half in range(1, round(UNITS * PER_UNIT) + 1)]
    due = {max(1, int(place * unit) // step_flops) for place in (*places, *extra) if place > 0}
    curve: list[tuple[float, float]] = []

    def watch(step: int, steps: int, row: dict[str, float]) -> None:
        if step in due:
            due.discard(step)
            metrics = manticore.evaluate(model, task, max_examples=EXAMPLES)
            curve.append((step * step_flops / unit, metrics[task.primary_metric]))
            if len(curve) > 1 and min(curve[-1][1], curve[-2][1]) >= ENOUGH:
                raise _Learned

    with suppress(_Learned):
        train(budget_flops=UNITS * unit, seed=seed, log_steps=1, test_examples=BATCH, progress=watch)
    return curve


def measure(name: str, model_name: str, seed: int) -> Row:
    """One row."""
    task = load_task(name, **TASKS[name])
    hybrid = supernet(task, seed)
    unit = UNIT_STEPS * flops_per_step(manticore.discretize(hybrid, [1, 1]), BATCH, task.length)
    row = Row(name, model_name, seed, unit, [])
    if model_name == FOUND:
        found = manticore.search(hybrid, task, finetune_flops=unit, seed=seed, **TUNING)
        row.path, row.spent = found.path, (found.flops - found.trained_flops) / unit
        tuning = {key: value for key, value in TUNING.items() if key != "warmup_steps"}
        left = [total - row.spent for total in TOTALS]
        model, train = found.model, lambda **options: manticore.finetune(found, task, **tuning, **options)
        row.curve = scored(train, model, task, unit, seed, left)
        chosen = next(each for each in found.candidates if each.chosen)
        print(f"{name}, seed {seed}: {found.verdict}; {found.reason}; {chosen.points[-1].mark} marks", flush=True)
    else:
        alone = [list(COMPONENTS).index(PARENT)] * 2
        model = manticore.discretize(hybrid, alone) if model_name == PARENT else stack(model_name, task, seed)
        row.curve = scored(
            lambda **options: manticore.finetune(model, task, **TUNING, **options), model, task, unit, seed
        )
    row.parameters = sum(parameter.numel() for parameter in model.parameters())
    shown = " ".join(f"{score:.3f}" for _, score in row.curve)
    print(f"{name}, seed {seed}, {model_name}: {shown}, beside it {row.spent:.2f}", flush=True)
    return row


def figures(rows: list[Row]) -> list[dict[str, Any]]:
    """Means and 95 % intervals over seeds: of each model on each task, after each total, in both comparisons."""
    found = []
    for name in dict.fromkeys(row.task for row in rows):
        for model in dict.fromkeys(row.model for row in rows):
            here = [row for row in rows if (row.task, row.model) == (name, model)]
            for total in TOTALS if here else ():
                for comparison in ("training", "everything"):
                    units = [total - (row.spent if comparison == "everything" else 0) for row in here]
                    scores = [score for row, left in zip(here, units) if (score := row.after(left)) is not None]
                    # some searches that are over at a total are no sample of all
                    mean, interval = mean_interval(scores) if len(scores) == len(here) else (None, None)
                    found.append(
                        {
                            "task": name, "model": model, "total": total, "comparison": comparison, "scores": scores,
                            "mean": mean, "interval": interval,
                        }
                    )  # fmt: skip
    return found


def tables(rows: list[Row], summary: list[dict[str, Any]]) -> Iterable[Table]:
    """One per task: a model's accuracy in both comparisons, and when it had learned the task."""
    for name in dict.fromkeys(row.task for row in rows):
        heads = [f"{kind}, {total}" for total in TOTALS for kind in ("training", "everything")]
        table = Table(
            "model",
            "parameters",
            *heads,
            f"units to {LEARNED}",
            "beside them",
            "paths",
            title=f"{name}: accuracy, mean ± 95 % over seeds; units",
        )
        for model in dict.fromkeys(row.model for row in rows if row.task == name):
            here = [row for row in rows if (row.task, row.model) == (name, model)]
            cells = []
            for each in summary:
                if (each["task"], each["model"]) == (name, model):
                    low, high = each["interval"] or (float("nan"), float("nan"))
                    cells.append("–" if each["mean"] is None else f"{each['mean']:.3f} ± {(high - low) / 2:.3f}")
            paths = "; ".join("".join("GM"[k] for k in row.path) for row in here if row.path is not None)
            learned = " ".join("–" if row.learned is None else f"{row.learned:.1f}" for row in here)
            beside = " ".join(f"{row.spent:.2f}" for row in here if row.spent)
            table.add_row(model, f"{here[0].parameters:,}", *cells, learned, beside, paths)
        yield table


def verdicts(summary: list[dict[str, Any]]) -> Iterable[str]:
    """What the searched hybrid is worth, in a sentence each."""
    for name in dict.fromkeys(each["task"] for each in summary):
        for total in TOTALS:
            for comparison in ("training", "everything"):
                here = [e for e in summary if (e["task"], e["total"], e["comparison"]) == (name, total, comparison)]
                ours = next((each for each in here if each["model"] == FOUND), None)
                others = [each for each in here if each["model"] in STACKS]
                if ours is None or not others:
                    continue
                if ours["mean"] is None:
                    yield f"{name}, {total} units, {comparison}: the search is not over"
                    continue
                best = max(others, key=lambda each: each["mean"])
                leads = [a - b for a, b in zip(ours["scores"], best["scores"])]
                lead, interval = mean_interval(leads)
                sure = interval is not None and not interval[0] <= 0 <= interval[1]
                word = ("ahead of" if lead > 0 else "behind") if sure else "not told apart from"
                yield f"{name}, {total} units, {comparison}: {word} {best['model']}, {lead:+.3f} in the mean of seeds"


def main() -> int:
    """Train what is missing, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"{FILE}.json"
    rows = [Row(**kept) for kept in json.loads(file.read_text())["rows"]] if file.exists() else []
    for name in arguments.only:
        for seed in range(arguments.seeds):
            for model in (FOUND, *STACKS, PARENT):
                if not any((row.task, row.model, row.seed) == (name, model, seed) for row in rows):
                    rows.append(measure(name, model, seed))
                    write_record(file, {"rows": [asdict(row) for row in rows]})
    summary = figures(rows)
    said = list(verdicts(summary))
    write_json(FILE, {"figures": summary, "verdicts": said, "rows": [asdict(row) for row in rows]})
    console = Console(width=150)
    for table in tables(rows, summary):
        console.print(table)
    for line in said:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
