"""Which search finds the best path? Every method on recorded learning curves, and those that learn weights for real.

    python benchmarks/search_methods.py [--real] [--seeds 3]      # seconds; with --real some hours, it resumes

Replays the methods that train candidates on ``benchmarks/results/landscapes`` (``benchmarks/landscapes.py``) and
prints, per landscape and over all: cost in units (one fine-tuning of one path), what was found, regret (the share of
the way from the best path to the worst, on the test split, against the seed's own truth and against the mean over
seeds) after 1, 2 and 4 units, and what a person holds: the metric of the path found when search and fine-tuning
together have cost as much as the best parent had for its training. With ``--real``, methods that learn mixture weights
search on the same hybrids.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from landscapes import CASES, FOLDER, TUNING, prepared, recorded
from measure import RESULTS, write_json
from rich.console import Console
from rich.table import Table

import manticore
from manticore.experiments.landscapes import Landscape, mean_truth, regret, replay
from manticore.registry import resolve
from manticore.search.curves import MARKS, spacing
from manticore.search.race import LATE
from manticore.search.space import Path

TOTALS = (3, 4)
"""Units that search and fine-tuning may cost together."""
GAPS = (0.1, 0.15, 0.2, 0.3, 0.4)
TO_TWO_THIRDS = "race to 2/3"
"""A race that is over after two thirds of a unit, whoever leads."""
DRAWS = 24
"""Seeds of methods that draw, and orders of blocks."""
REAL: dict[str, dict[str, Any]] = {
    "darts": {"method": "darts"},
    "dash, rate .05": {"method": "dash", "mixture_lr": 0.05},
    "gaea": {"method": "gaea"},
}


@dataclass(frozen=True)
class Found:
    """What a method found on a landscape."""

    path: Path
    cost: float
    regrets: dict[int, float]
    """Units → regret against the seed's own truth."""
    mean_regrets: dict[int, float]
    """The same against the mean over seeds."""
    held: dict[int, float | None]
    """Units in all → metric of what one holds, minus the best parent's at the same total; None: nothing is left."""


def methods(blocks: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name in the table → registered method and options."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {"auto": ("auto", {})}
    if blocks == 2:
        rows |= {f"race, {gap:g} nats": ("race", {"gap": gap}) for gap in GAPS} | {TO_TWO_THIRDS: ("race", {})}
    rows |= {"blockwise": ("blockwise", {}), "halving": ("halving", {}), "exhaustive": ("exhaustive", {})}
    return rows | {f"random {n}": ("random", {"candidates": n}) for n in (1, 2, 3, 4)}


def scored(landscape: Landscape) -> list[int]:
    """The marks that a search on this hybrid would score: scoring may cost a tenth of the training."""
    return spacing(next(iter(landscape.points.values()))[1].spent, landscape.facts["unit"])


def permuted(landscape: Landscape, order: tuple[int, ...]) -> Landscape:
    """The same hybrid with its blocks in another order: a method that goes block by block meets them so."""
    moved = lambda path: tuple(path[n] for n in order)  # noqa: E731
    points = {moved(path): curve for path, curve in landscape.points.items()}
    return replace(landscape, points=points, errors={(moved(a), moved(b)): e for (a, b), e in landscape.errors.items()})


def holds(landscape: Landscape, path: Path, searched: dict[Path, int], cost: float, total: int) -> float | None:
    """The validation metric of a path after what is left of ``total`` units, minus the best parent's after all."""
    sign = 1 if landscape.higher_is_better else -1
    unit = landscape.facts["unit"]
    own = total - (cost - searched.get(path, 0) / unit)
    best = max(_after(landscape, parent, total, sign) for parent in landscape.space.parents)
    return None if own * MARKS < 1 else _after(landscape, path, own, sign) - best


def _after(landscape: Landscape, path: Path, units: float, sign: int) -> float:
    reached = [mark for mark in landscape.points[path] if mark <= units * MARKS + 1e-9]
    return sign * landscape.points[path][reached[-1]].metric


def judge(landscape: Landscape, truths: dict[int, dict[Path, float]], label: str) -> list[Found]:
    """One method on one landscape; several times where it draws, or the order of blocks matters."""
    name, options = methods(landscape.space.num_blocks)[label]
    orders: Iterable[tuple[int, ...]] = [tuple(range(landscape.space.num_blocks))]
    if label in ("auto", "blockwise"):
        orders = itertools.islice(itertools.permutations(range(landscape.space.num_blocks)), DRAWS)
    seeds = range(DRAWS) if name == "random" else range(1)
    marks = [mark for mark in scored(landscape) if label != TO_TWO_THIRDS or mark <= LATE]
    found = []
    for order, seed in itertools.product(orders, seeds):
        moved = permuted(landscape, order)
        done = replay(moved, resolve("search", name), seed, marks, **options)
        back = tuple(path for _, path in sorted(zip(order, done.choice.path)))
        training = {tuple(k for _, k in sorted(zip(order, path))): flops for path, flops in done.training.items()}
        units = sorted(truths)
        found.append(
            Found(
                back,
                done.cost,
                {unit: regret(landscape.truth(unit), back) for unit in units},
                {unit: regret(truths[unit], back) for unit in units},
                {total: holds(landscape, back, training, done.cost, total) for total in TOTALS if total <= units[-1]},
            )
        )
    return found


def units_of(landscape: Landscape) -> list[int]:
    """Whole units that the truth is known for."""
    last = max(next(iter(landscape.points.values()))) // MARKS
    return [unit for unit in (1, 2, 4) if unit <= last]


def everything(seeds: int) -> dict[str, list[Landscape]]:
    """All landscapes that were measured, by name."""
    found = {name: [recorded(name, seed) for seed in range(seeds)] for name in CASES}
    return {name: kept for name, rows in found.items() if (kept := [row for row in rows if row is not None])}


def summarised(landscapes: dict[str, list[Landscape]]) -> list[dict[str, Any]]:
    """A row per landscape and method, means over seeds and draws."""
    rows = []
    for name, found in landscapes.items():
        truths = {unit: mean_truth([each.truth(unit) for each in found]) for unit in units_of(found[0])}
        for label in methods(found[0].space.num_blocks):
            results = [result for landscape in found for result in judge(landscape, truths, label)]
            last = max(truths)
            rows.append(
                {
                    "landscape": name, "blocks": found[0].space.num_blocks, "method": label, "seeds": len(found),
                    "cost": _mean(result.cost for result in results),
                    "most": max(result.cost for result in results),
                    "paths": sorted({"-".join(map(str, result.path)) for result in results}),
                    "regret": {unit: _mean(result.regrets[unit] for result in results) for unit in truths},
                    "worst": max(result.regrets[last] for result in results),
                    "regret of the mean": {u: _mean(result.mean_regrets[u] for result in results) for u in truths},
                    "held": {t: _mean_if_all(r.held[t] for r in results) for t in TOTALS if t in results[0].held},
                }
            )  # fmt: skip
    return rows


def _mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), 4)


def _mean_if_all(values: Iterable[float | None]) -> float | None:
    """The mean, where none is missing: one over the others would flatter."""
    known = list(values)
    return None if None in known else _mean(value for value in known if value is not None)


def tables(rows: list[dict[str, Any]]) -> Iterable[Table]:
    """One per landscape, and one over all for each number of blocks."""
    for name in dict.fromkeys(row["landscape"] for row in rows):
        yield _table(name, [row for row in rows if row["landscape"] == name], lambda row: " ".join(row["paths"][:4]))
    for blocks in sorted({row["blocks"] for row in rows}):
        here = [row for row in rows if row["blocks"] == blocks]
        overall = [over([row for row in here if row["method"] == label]) for label in methods(blocks)]
        yield _table(f"{blocks} blocks, mean of {overall[0]['landscapes']} landscapes", overall, lambda row: "")


def over(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over landscapes of one method."""

    def mean(key: str) -> dict[int, float | None]:
        shared = set.intersection(*(set(row[key]) for row in rows))
        return {each: _mean_if_all(row[key][each] for row in rows) for each in sorted(shared)}

    return {
        "method": rows[0]["method"],
        "landscapes": len(rows),
        "cost": _mean(row["cost"] for row in rows),
        "most": max(row["most"] for row in rows),
        "worst": max(row["worst"] for row in rows),
        "paths": [],
        **{key: mean(key) for key in ("regret", "regret of the mean", "held")},
    }


def thresholds(rows: list[dict[str, Any]]) -> Table:
    """The gap of a race chosen on every second landscape, and what it does on the others; then the other way round."""
    raced = [row for row in rows if row["method"].startswith("race,")]
    names = list(dict.fromkeys(row["landscape"] for row in raced))
    table = Table(
        "chosen on", "best", "regret there", "units", "regret elsewhere", "units", "auto elsewhere", "units",
        title="thresholds, two blocks (regret after 2 units)",
    )  # fmt: skip
    for here in (names[::2], names[1::2]):
        there = [name for name in names if name not in here]
        if not there:
            continue
        order = sorted((*_of(raced, label, here), label) for label in dict.fromkeys(row["method"] for row in raced))
        regret_here, cost, best = order[0]
        cells = (regret_here, cost, *_of(raced, best, there), *_of(rows, "auto", there))
        table.add_row(" ".join(here), best, *(f"{cell:.2f}" for cell in cells))
    return table


def _of(rows: list[dict[str, Any]], label: str, names: list[str]) -> tuple[float, float]:
    """Mean regret after two units and mean cost of a method on some landscapes."""
    found = [row for row in rows if row["method"] == label and row["landscape"] in names]
    return _mean(row["regret"][2] for row in found), _mean(row["cost"] for row in found)


def _table(title: str, rows: list[dict[str, Any]], shown: Callable[[dict[str, Any]], str]) -> Table:
    table = Table("method", "units", "most", "regret", "of the mean", "worst", "held", "paths", title=title)
    for row in rows:
        cells = [" ".join(f"{value:.2f}" for value in row[key].values()) for key in ("regret", "regret of the mean")]
        held = " ".join("–" if value is None else f"{value:+.3f}" for value in row["held"].values())
        table.add_row(
            row["method"], f"{row['cost']:.2f}", f"{row['most']:.2f}", *cells, f"{row['worst']:.2f}", held, shown(row)
        )
    return table


def real(name: str, seed: int, label: str) -> dict[str, Any]:
    """A search that learns weights, on the hybrid of a landscape: what it found, and at which cost."""
    supernet, task = prepared(CASES[name], seed)
    settings = {"batch_size": TUNING.batch_size, "lr": TUNING.lr, "steps": 500, "cpu": True, "seed": seed}
    result = manticore.search(supernet, task, **REAL[label], **settings)
    return {"landscape": name, "seed": seed, "method": label, "path": result.path, "flops": result.flops}


def main() -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--real", action="store_true", help="also run the searches that learn weights")
    arguments = parser.parse_args()
    landscapes = everything(arguments.seeds)
    if not landscapes:
        print(f"no landscapes in {FOLDER}: python benchmarks/landscapes.py")
        return 1
    file = RESULTS / "search_methods.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    learned = kept.get("learned", [])
    if arguments.real:
        for name, label in itertools.product(landscapes, REAL):
            for landscape in landscapes[name]:
                seed = landscape.facts["seed"]
                if not any((row["landscape"], row["seed"], row["method"]) == (name, seed, label) for row in learned):
                    learned.append(real(name, seed, label))
                    write_json("search_methods", {**kept, "learned": learned})
    for row in learned:
        landscape = next(each for each in landscapes[row["landscape"]] if each.facts["seed"] == row["seed"])
        row["cost"] = row["flops"] / landscape.facts["unit"]
        row["regret"] = {unit: regret(landscape.truth(unit), tuple(row["path"])) for unit in units_of(landscape)}
    rows = summarised(landscapes)
    write_json("search_methods", {"replayed": rows, "learned": learned})
    console = Console()
    for table in (*tables(rows), thresholds(rows)):
        console.print(table)
    for row in learned:
        regrets = " ".join(f"{value:.2f}" for value in row["regret"].values())
        print(
            f"{row['landscape']}, seed {row['seed']}: {row['method']} {row['path']} {row['cost']:.2f} units {regrets}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
