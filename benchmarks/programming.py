"""Is what was found on one task worth something on another? Paths and weights, set on hybrids of the same parents.

    python benchmarks/programming.py [--folder DIR]      # seconds
    python benchmarks/programming.py --learned [--seeds 3]      # about 3 minutes of one core besides; it resumes

Paths: for every ordered pair of landscapes (``benchmarks/landscapes.py``) whose hybrids have the same parents, blocks
and seed, what the default search finds on the first is set on the second, where it costs nothing. Beside it stand a
search on the second and the mean over all paths. Regret is the share of the way from the best path to the worst, on
the test split, after 1, 2 and 4 units; a hit is the best path. Weights (``--learned``): ``darts`` on one task, then on
the other from the weights found (``start=``) and from ½, in one hybrid whose parents were pretrained with seed 0; a
seed draws fresh vocabularies and the order of the data. Writes ``benchmarks/results/programming.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from landscapes import CASES, FOLDER, TUNING, parent
from measure import RESULTS, write_json
from pairs import TEXT_BYTES
from rich.console import Console
from rich.table import Table
from search_methods import scored, units_of

import manticore
from manticore.experiments.intervals import mean_interval
from manticore.experiments.landscapes import Landscape, mean_truth, regret, replay
from manticore.registry import resolve
from manticore.search.objective import held_out
from manticore.search.space import spelled
from manticore.tasks.corpus import read_corpus
from manticore.tasks.task import load_task
from manticore.training.prepare import fit_to_task
from manticore.writing import write_json as write_record

FILE = "programming"
LEARNED = ("noisy-recall-32", "recall-32")
"""Landscapes whose tasks weights are learned on, the first also from what was found on the second."""
HALF = "½"
WAYS = ("set", "searched", "any")
UNITS = ("1", "2", "4")
STEPS = 120
EXAMPLES = 256


def landscapes(folder: Path) -> list[Landscape]:
    """All that were measured."""
    files = sorted(folder.glob("*.json"))
    return [Landscape.read(json.loads(file.read_text())) for file in files if file.stem.rpartition("-")[0] in CASES]


def pairs(found: list[Landscape]) -> Iterator[tuple[Landscape, Landscape]]:
    """Ordered pairs of tasks on the same hybrid."""
    for first, second in itertools.permutations(found, 2):
        ours, theirs = (CASES[each.facts["name"]] for each in (first, second))
        same = (ours.parents, ours.blocks, first.facts["seed"]) == (theirs.parents, theirs.blocks, second.facts["seed"])
        if same and first.facts["name"] != second.facts["name"]:
            yield first, second


def kind(landscape: Landscape) -> str:
    """What a task asks for: to recall, or something of its own."""
    task = str(landscape.facts["task"])
    return "recall" if task.endswith("recall") else task


def judged(first: Landscape, second: Landscape) -> dict[str, Any]:
    """A path found on one task, on another."""
    auto = resolve("search", "auto")
    there, here = (replay(each, auto, each.facts["seed"], scored(each)) for each in (first, second))
    row: dict[str, Any] = {
        "found on": first.facts["name"], "set on": second.facts["name"], "seed": second.facts["seed"],
        "blocks": second.space.num_blocks, "set": spelled(there.choice.path), "searched": spelled(here.choice.path),
        "units": here.cost, "alike": kind(first) == kind(second),
    }  # fmt: skip
    for unit in units_of(second):
        truth = second.truth(unit)
        best = max(truth.values())
        row[str(unit)] = {
            "set": regret(truth, there.choice.path),
            "searched": regret(truth, here.choice.path),
            "any": statistics.fmean(regret(truth, path) for path in truth),
            "hit, set": truth[there.choice.path] == best,
            "hit, searched": truth[here.choice.path] == best,
            "hit, any": statistics.fmean(value == best for value in truth.values()),
        }
    return row


def aligned(name: str) -> Any:
    """The hybrid of a landscape, of the parents with seed 0, as it was before any task."""
    case = CASES[name]
    return deepcopy(_aligned(tuple(parent(entry, 0) for entry in case.parents), case.blocks))


@cache
def _aligned(folders: tuple[Path, ...], blocks: int) -> Any:
    hybrid = manticore.combine(folders, num_blocks=blocks)
    manticore.align(hybrid, read_corpus("stdlib", max_bytes=TEXT_BYTES), tokens=32_768)
    return hybrid


def learned(name: str, label: str, start: list[list[float]] | None, seed: int) -> dict[str, Any]:
    """A search that learns weights on the task of a landscape.

    Args:
        name: of the landscape.
        label: of the start.
        start: the mixture weights to start from; None: all equal.
        seed: of vocabulary, data and search.
    """
    case = CASES[name]
    task = load_task(case.task, **case.options)
    settings = {"batch_size": TUNING.batch_size, "lr": TUNING.lr, "steps": STEPS, "seed": seed, "cpu": True}
    result = manticore.search(fit_to_task(aligned(name), task, seed), task, method="darts", start=start, **settings)
    point = held_out(result.model, task, TUNING.batch_size, EXAMPLES)
    return {
        "task": name, "start": label, "seed": seed, "path": spelled(tuple(result.path)),
        "weights": result.weights.tolist(), "flops": result.flops, "loss": point.loss, "metric": point.metric,
    }  # fmt: skip


def measure(kept: list[dict[str, Any]], seeds: int, save: Callable[[], object]) -> None:
    """Run the searches that are missing, those from ½ first."""
    known = {(row["task"], row["start"], row["seed"]): row["weights"] for row in kept}
    for seed in range(seeds):
        wanted = [*((name, HALF) for name in LEARNED), LEARNED]
        for name, label in wanted:
            if (name, label, seed) not in known:
                kept.append(learned(name, label, known.get((label, HALF, seed)), seed))
                known[name, label, seed] = kept[-1]["weights"]
                print(kept[-1], flush=True)
                save()


def with_regret(kept: list[dict[str, Any]], found: list[Landscape]) -> None:
    """Add what the paths of learned weights lose, by the mean over the landscapes of the task."""
    for row in kept:
        here = [each for each in found if each.facts["name"] == row["task"]]
        if not here:
            continue
        row["units"] = row["flops"] / here[0].facts["unit"]
        path = tuple(map(int, row["path"].split("-")))
        truths = {unit: mean_truth([each.truth(unit) for each in here]) for unit in units_of(here[0])}
        row["regret"] = {str(unit): regret(truth, path) for unit, truth in truths.items()}


def overall(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over pairs of tasks that are alike, and over the others; 95 % intervals over seeds."""
    found = []
    for blocks, alike, unit in itertools.product(sorted({row["blocks"] for row in rows}), (True, False), UNITS):
        here = [row for row in rows if (row["blocks"], row["alike"]) == (blocks, alike) and unit in row]
        if not here:
            continue
        seeds = sorted({row["seed"] for row in here})
        summary: dict[str, Any] = {"blocks": blocks, "tasks": "of one kind" if alike else "of two kinds"}
        summary |= {"after": int(unit), "pairs": len(here), "seeds": len(seeds)}
        summary["units"] = statistics.fmean(row["units"] for row in here)
        for key in here[0][unit]:
            means = [statistics.fmean(row[unit][key] for row in here if row["seed"] == seed) for seed in seeds]
            summary[key], summary[f"{key}, interval"] = mean_interval(means)
        summary["worst, set"] = max(row[unit]["set"] for row in here)
        summary["worst, searched"] = max(row[unit]["searched"] for row in here)
        found.append(summary)
    return found


def tables(rows: list[dict[str, Any]], summary: list[dict[str, Any]], kept: list[dict[str, Any]]) -> Iterable[Table]:
    """Every pair, all of them, and learned weights."""
    title = "regret after 1, 2, 4 units on the second task: path found on the first / by a search there / any"
    table = Table("found on", "set on", "seed", "path", "regret", "search", "its units", "regret", "any", title=title)
    for row in rows:
        cells = {key: " ".join(f"{row[u][key]:.2f}" for u in UNITS if u in row) for key in WAYS}
        table.add_row(
            row["found on"], row["set on"], str(row["seed"]), row["set"], cells["set"], row["searched"],
            f"{row['units']:.2f}", cells["searched"], cells["any"],
        )  # fmt: skip
    yield table
    heads = ("blocks", "tasks", "after", "pairs", "seeds")
    table = Table(*heads, "way", "units", "hit rate", "regret", "95 %", title="all pairs")
    for row in summary:
        for way in WAYS:
            interval = row[f"{way}, interval"]
            spread = "–" if interval is None else f"{interval[0]:.2f} … {interval[1]:.2f}"
            units = f"{row['units']:.2f}" if way == "searched" else "0"
            numbers = [str(row[key]) for key in heads]
            table.add_row(*numbers, way, units, f"{row[f'hit, {way}']:.2f}", f"{row[way]:.2f}", spread)
    yield table
    if kept:
        table = Table(
            "task", "start", "seed", "weights of component 0", "path", "units", "regret", "loss", "metric",
            title=f"darts, {STEPS} steps: from ½, and from what it found on the other task",
        )  # fmt: skip
        for row in sorted(kept, key=lambda row: (row["task"], row["start"], row["seed"])):
            weights = " ".join(f"{block[0]:.2f}" for block in row["weights"])
            regrets = " ".join(f"{value:.2f}" for value in row.get("regret", {}).values())
            units = f"{row['units']:.2f}" if "units" in row else ""
            table.add_row(
                row["task"], row["start"], str(row["seed"]), weights, row["path"], units, regrets,
                f"{row['loss']:.3f}", f"{row['metric']:.3f}",
            )  # fmt: skip
        yield table


def main() -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="landscapes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learned", action="store_true", help="also run the searches that learn weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = landscapes(arguments.folder)
    file = RESULTS / f"{FILE}.json"
    written = json.loads(file.read_text()) if file.exists() else {}
    kept: list[dict[str, Any]] = written.get("learned", [])
    if arguments.learned:
        measure(kept, arguments.seeds, lambda: write_record(file, {**written, "learned": kept}))
    with_regret(kept, found)
    rows = [judged(*pair) for pair in pairs(found)]
    summary = overall(rows)
    names = [f"{each.facts['name']}-{each.facts['seed']}" for each in found]
    write_json(FILE, {"landscapes": names, "overall": summary, "pairs": rows, "learned": kept})
    console = Console(width=150)
    for table in tables(rows, summary, kept):
        console.print(table)
    print(f"{len(rows)} ordered pairs out of {len(found)} landscapes: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
