"""Does a race with small batches find the path that is best with large ones?

    python benchmarks/cheaper_races.py [--batches 4] [--seeds 3] [--only NAME …]      # 5 to 10 minutes of one core each

For every landscape of ``benchmarks/results/landscapes``, all paths train with smaller batches, and so more steps, for
a unit; it is the same FLOPs as there. ``auto`` is replayed on these curves and on the landscape's
own, and regret is what the path found lacks on the landscape's test split, where it trains with its batches of 16:
as a share of the way from the best path to the worst; what parents score after a unit stands beside. Resumes; writes
``benchmarks/results/races/<name>-<seed>-<batch>.json`` and prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from landscapes import CASES, TUNING, prepared, recorded
from measure import RESULTS, write_json
from rich.console import Console
from rich.table import Table
from search_methods import scored, units_of

from manticore.experiments.landscapes import Landscape, TestedObjective, regret, replay
from manticore.registry import resolve
from manticore.search.curves import MARKS
from manticore.search.objective import unit_flops
from manticore.settings import Finetune
from manticore.writing import write_json as write

FOLDER = RESULTS / "races"


def raced(name: str, seed: int, batch: int, work: Path) -> Landscape:
    """The curves of all paths with batches of another size."""
    file = FOLDER / f"{name}-{seed}-{batch}.json"
    if file.exists():
        return Landscape.read(json.loads(file.read_text()))
    supernet, task = prepared(CASES[name], seed)
    unit, _ = unit_flops(supernet, task, TUNING, None)
    tuning = Finetune(steps=TUNING.steps * TUNING.batch_size // batch, batch_size=batch, lr=TUNING.lr)
    _, settings = unit_flops(supernet, task, tuning, None)
    until = range(1, MARKS + 1)
    objective = TestedObjective(supernet, task, settings, unit, work / file.stem, seed, cpu=True, until=until)
    said = f"{name}, seed {seed}, batches of {batch}"
    curves = objective.curves(
        lambda path, found: print(f"{said}: {path} {found.points[path][MARKS].metric:.3f}", flush=True)
    )
    found = Landscape.of(curves, name=name, seed=seed, unit=unit, batch_size=batch, metric=task.primary_metric)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write(file, found.to_dict())
    return found


def judged(curves: Landscape, truth: Landscape, batch: int) -> dict[str, Any]:
    """What ``auto`` does on some curves, and how good that is by a landscape."""
    done = replay(curves, resolve("search", "auto"), 0, scored(curves))
    return {
        "landscape": truth.facts["name"], "seed": truth.facts["seed"], "batch": batch, "path": list(done.choice.path),
        "cost": round(done.cost, 3), "reason": done.choice.reason,
        "regret": {unit: round(regret(truth.truth(unit), done.choice.path), 4) for unit in units_of(truth)},
        "parents": [round(curves.points[parent][MARKS].metric, 4) for parent in curves.space.parents],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> Table:
    """A row per race, and the mean of each size of batch."""
    shown = Table(
        "landscape", "seed", "batches of", "path", "units", "regret at 1, 2, 4 units", "parents after 1", "why"
    )
    for row in rows:
        cells = " ".join(f"{value:.2f}" for value in row["regret"].values())
        path = "-".join(map(str, row["path"]))
        shown.add_row(
            row["landscape"],
            str(row["seed"]),
            str(row["batch"]),
            path,
            f"{row['cost']:.2f}",
            cells,
            " ".join(f"{metric:.2f}" for metric in row["parents"]),
            row["reason"],
        )
    for batch in sorted({row["batch"] for row in rows}):
        here = [row for row in rows if row["batch"] == batch]
        means = [statistics.fmean(row["regret"][unit] for row in here) for unit in (1, 2)]
        cost = statistics.fmean(row["cost"] for row in here)
        shown.add_row(
            f"mean of {len(here)}", "", str(batch), "", f"{cost:.2f}", " ".join(f"{mean:.2f}" for mean in means), "", ""
        )
    return shown


def main() -> int:
    """Measure what is missing, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--work", type=Path, default=Path("~/.cache/manticore/races").expanduser())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.only:
        for seed in range(arguments.seeds):
            if (truth := recorded(name, seed)) is None:
                continue
            if truth.space.num_blocks == 2:
                rows.append(judged(truth, truth, TUNING.batch_size))
                for batch in arguments.batches:
                    rows.append(judged(raced(name, seed, batch, arguments.work), truth, batch))
    write_json("cheaper_races", {"rows": rows})
    Console(width=150).print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
