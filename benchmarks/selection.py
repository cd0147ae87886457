"""Which of K checkpoints is worth fine-tuning? One block, and the search that finds hybrids chooses among them.

    python benchmarks/selection.py [--seeds 3] [--only NAME …]      # about 5 minutes of one core; it resumes

Three tiny checkpoints, pretrained by the script on the standard library's source (a GPT-Neo, the same after a tenth of
the steps, a Mamba; two layers each), stand side by side in one block, ``combine(checkpoints, num_blocks=1)``,
so that a path is a checkpoint. The truth is what each of them scores on the test split after a whole fine-tuning (a
unit). Beside the default search, replayed on those curves (once also run for real), stand what one would
do otherwise: draw one, take the lowest loss before any training, fine-tune each for a K-th of a unit, fine-tune all.
Checkpoints are the same for all seeds: a seed draws fresh vocabularies and the order of the data. Regret is the share
of the way from the best to the worst. Writes ``benchmarks/results/selection.json``, landscapes included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, write_json
from pairs import TEXT_BYTES, TOKENS
from rich.console import Console
from rich.table import Table

import manticore
from manticore.components.loading import load_tokenizer
from manticore.experiments.intervals import mean_interval
from manticore.experiments.landscapes import Landscape, TestedObjective, mean_truth, regret, replay
from manticore.registry import resolve
from manticore.search.curves import MARKS, Curves, spacing
from manticore.search.objective import held_out, unit_flops
from manticore.search.space import Path as Choice
from manticore.search.space import spelled
from manticore.settings import Finetune
from manticore.tasks.task import Task, load_task
from manticore.training.prepare import fit_to_task
from manticore.training.pretrain import pretrain
from manticore.writing import write_json as write_record

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "gpt": {"family": "gpt_neo", "width": 64, "steps": 200},
    "gpt, 20 steps": {"family": "gpt_neo", "width": 64, "steps": 20},
    "mamba": {"family": "mamba", "width": 64, "steps": 200},
}
LAYERS = 2
TASKS: dict[str, tuple[str, dict[str, Any], Finetune]] = {
    "recall-32": (
        "mad/in-context-recall",
        {"seq_len": 32, "vocab_size": 8},
        Finetune(steps=150, batch_size=16, lr=3e-3),
    ),
    "selective-copying-32": (
        "mad/selective-copying",
        {"seq_len": 32, "num_tokens_to_copy": 4},
        Finetune(steps=150, batch_size=16, lr=3e-3),
    ),
    "text-64": ("text", {"length": 64, "max_bytes": TEXT_BYTES}, Finetune(steps=75, batch_size=16, lr=3e-3)),
}
"""Name → task, its options, and how a unit trains."""
SHARE = MARKS // len(CHECKPOINTS)
"""The mark where each has had a K-th of a unit."""
SCORED = (SHARE, *range(2, MARKS + 1, 2))
FILE = "selection"
EXAMPLES = 256


def prepared(name: str, seed: int) -> tuple[Any, Task]:
    """All checkpoints in one block, with the vocabulary of the task; and the task."""
    shared: dict[str, Any] = {"layers": LAYERS, "batch_size": 16, "length": TOKENS, "max_bytes": TEXT_BYTES}
    folders = [pretrain(entry["family"], **shared, **_sizes(entry)) for entry in CHECKPOINTS.values()]
    task_name, options, _ = TASKS[name]
    task = load_task(task_name, tokenizer=load_tokenizer(folders[0]), **options)
    return fit_to_task(manticore.combine(folders, num_blocks=1, seed=seed), task, seed), task


def _sizes(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "family"}


def measure(name: str, seed: int, work: Path) -> dict[str, Any]:
    """The curves of every checkpoint on a task, and its loss before any training."""
    supernet, task = prepared(name, seed)
    unit, settings = unit_flops(supernet, task, TASKS[name][2], None)
    marks = sorted(set(SCORED))
    objective = TestedObjective(supernet, task, settings, unit, work / f"{name}-{seed}", seed, cpu=True, until=marks)
    curves = Curves(objective.space, task.higher_is_better, marks)
    before = {}
    for path in objective.space.paths():
        before[path] = held_out(objective.model(path), task, settings.batch_size, EXAMPLES).loss
        for point in objective.advance(path, MARKS):
            curves.add(path, point)
        print(f"{name}, seed {seed}: {list(CHECKPOINTS)[path[0]]} {curves.points[path][MARKS].test:.3f}", flush=True)
    found = Landscape.of(curves, name=name, seed=seed, task=task.name, unit=unit, metric=task.primary_metric)
    row = {"landscape": found.to_dict(), "before": {spelled(path): loss for path, loss in before.items()}}
    if (name, seed) == (next(iter(TASKS)), 0):
        _, _, tuning = TASKS[name]
        result = manticore.search(
            supernet, task, batch_size=tuning.batch_size, lr=tuning.lr, finetune_flops=unit, seed=seed, cpu=True
        )
        row["searched"] = {"path": result.path, "flops": result.flops, "verdict": result.worded(list(CHECKPOINTS))}
    return row


Picks = Callable[[Landscape, Mapping[str, float]], tuple[list[Choice], float]]
"""A way to choose: what it chooses (each of several alike, where it draws), and units."""


def by_search(method: str) -> Picks:
    """What a method of searching chooses."""

    def pick(landscape: Landscape, before: Mapping[str, float]) -> tuple[list[Choice], float]:
        done = replay(landscape, resolve("search", method), landscape.facts["seed"], scored(landscape))
        return [done.choice.path], done.cost

    return pick


def scored(landscape: Landscape) -> list[int]:
    """The marks that the search itself would score."""
    wanted = spacing(_spent(landscape), landscape.facts["unit"])
    return [mark for mark in wanted if mark in landscape.points[(0,)]]


def _spent(landscape: Landscape) -> int:
    return max(curve[MARKS].spent for curve in landscape.points.values())


def drawn(landscape: Landscape, before: Mapping[str, float]) -> tuple[list[Choice], float]:
    """Any of them."""
    return landscape.space.paths(), 0.0


def untrained(landscape: Landscape, before: Mapping[str, float]) -> tuple[list[Choice], float]:
    """The lowest loss before training."""
    spent = sum(curve[MARKS].spent for curve in landscape.points.values())
    return [min(landscape.space.paths(), key=lambda path: before[spelled(path)])], spent / landscape.facts["unit"]


def shortened(landscape: Landscape, before: Mapping[str, float]) -> tuple[list[Choice], float]:
    """Each trained for a K-th of a unit, the best validation metric then."""
    sign = 1 if landscape.higher_is_better else -1
    best = max(landscape.space.paths(), key=lambda path: sign * landscape.points[path][SHARE].metric)
    spent = sum(curve[SHARE].flops + curve[SHARE].spent for curve in landscape.points.values())
    return [best], spent / landscape.facts["unit"]


WAYS: dict[str, Picks] = {
    "search, auto": by_search("auto"),
    "draw one": drawn,
    "loss before training": untrained,
    "each a K-th of a unit": shortened,
    "each a whole unit": by_search("exhaustive"),
}


def judged(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per way, task and seed: what was chosen, at what cost, and what that loses."""
    found = []
    for name in dict.fromkeys(row["landscape"]["name"] for row in rows):
        here = [(Landscape.read(row["landscape"]), row["before"]) for row in rows if row["landscape"]["name"] == name]
        mean = mean_truth([landscape.truth(1) for landscape, _ in here])
        for way, pick in WAYS.items():
            for landscape, before in here:
                chosen, cost = pick(landscape, before)
                truth = landscape.truth(1)
                best = max(truth.values())
                found.append(
                    {
                        "task": name, "way": way, "seed": landscape.facts["seed"], "units": cost,
                        "chosen": [list(CHECKPOINTS)[path[0]] for path in chosen],
                        "hit": statistics.fmean(truth[path] == best for path in chosen),
                        "regret": statistics.fmean(regret(truth, path) for path in chosen),
                        "regret of the mean": statistics.fmean(regret(mean, path) for path in chosen),
                        "lost": statistics.fmean(best - truth[path] for path in chosen),
                    }
                )  # fmt: skip
    return found


def over_seeds(rows: list[dict[str, Any]], key: str) -> tuple[float, tuple[float, float] | None]:
    """The mean over tasks of each seed, and the 95 % interval over seeds."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    return mean_interval([statistics.fmean(row[key] for row in rows if row["seed"] == seed) for seed in seeds])


def tables(kept: list[Mapping[str, Any]], rows: list[dict[str, Any]]) -> list[Table]:
    """The truth of every task, what each way chose there, and all of it in a few numbers."""
    truths = Table("task", *CHECKPOINTS, title="the truth: test split after one unit, per seed")
    for name in dict.fromkeys(row["task"] for row in rows):
        here = [Landscape.read(row["landscape"]) for row in kept if row["landscape"]["name"] == name]
        cells = [" ".join(f"{abs(each.truth(1)[(k,)]):.3f}" for each in here) for k in range(len(CHECKPOINTS))]
        truths.add_row(f"{name}, {here[0].facts['metric']}", *cells)
    picked = Table("task", "way", "units", "chosen, per seed", "regret, per seed", title="what each way chose")
    for name in dict.fromkeys(row["task"] for row in rows):
        for way in WAYS:
            here = [row for row in rows if (row["task"], row["way"]) == (name, way)]
            chosen = "; ".join(row["chosen"][0] if len(row["chosen"]) == 1 else "any" for row in here)
            regrets = " ".join(f"{row['regret']:.2f}" for row in here)
            picked.add_row(name, way, f"{statistics.fmean(row['units'] for row in here):.2f}", chosen, regrets)
    overall = Table("way", "units", "hit rate", "regret", "95 % over seeds", "of the mean", "worst", title="all tasks")
    for row in summarised(rows):
        low, high = row["interval"] or (float("nan"), float("nan"))
        numbers = (row["units"], row["hit"], row["regret"])
        cells = [f"{number:.2f}" for number in numbers]
        overall.add_row(
            row["way"], *cells, f"{low:.2f} … {high:.2f}", f"{row['regret of the mean']:.2f}", f"{row['worst']:.2f}"
        )
    return [truths, picked, overall]


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per way, over all tasks and seeds."""
    found = []
    for way in WAYS:
        here = [row for row in rows if row["way"] == way]
        mean, interval = over_seeds(here, "regret")
        found.append(
            {
                "way": way, "regret": mean, "interval": interval, "worst": max(row["regret"] for row in here),
                **{key: statistics.fmean(row[key] for row in here) for key in ("units", "hit", "regret of the mean")},
            }
        )  # fmt: skip
    return found


def main() -> int:
    """Measure what is missing, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--work", type=Path, default=Path("~/.cache/manticore/selection").expanduser())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"{FILE}.json"
    kept: list[dict[str, Any]] = json.loads(file.read_text())["measured"] if file.exists() else []
    for seed in range(arguments.seeds):
        for name in arguments.only:
            if not any((row["landscape"]["name"], row["landscape"]["seed"]) == (name, seed) for row in kept):
                kept.append(measure(name, seed, arguments.work))
                write_record(file, {"measured": kept})
    rows = judged(kept)
    write_json(FILE, {"ways": summarised(rows), "choices": rows, "measured": kept})
    console = Console(width=150)
    for table in tables(kept, rows):
        console.print(table)
    for row in kept:
        if "searched" in row:
            landscape = Landscape.read(row["landscape"])
            same = by_search("auto")(landscape, row["before"])
            units = row["searched"]["flops"] / landscape.facts["unit"]
            print(
                f"{landscape.facts['name']}, seed 0, for real {row['searched']['path']} at {units:.3f} units, replayed "
                f"{list(same[0][0])} at {same[1]:.3f}. {row['searched']['verdict']}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
