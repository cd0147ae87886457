"""Learning curves of every path through small hybrids: the ground truth that searches are judged by.

    python benchmarks/landscapes.py [--seeds 3] [--only NAME …] [--work DIR]      # about 6 hours of one core; resumes

Tiny models pretrained by the script on the standard library's source are cut into blocks and aligned; then every path
trains with equal FLOPs and is scored on 256 held-out examples at every twelfth of a unit (after one unit: at every
quarter), on the test split at whole units. A unit is what 300 steps of 16 sequences cost the costliest parent. Writes
``benchmarks/results/landscapes/<name>-<seed>.json``; ``benchmarks/search_methods.py`` replays searches on them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS
from pairs import TEXT_BYTES, TOKENS
from rich.console import Console
from rich.table import Table

import manticore
from manticore.components.loading import load_tokenizer
from manticore.experiments.landscapes import Landscape, TestedObjective, marks
from manticore.search.curves import MARKS
from manticore.search.objective import unit_flops
from manticore.settings import Finetune
from manticore.tasks.corpus import read_corpus
from manticore.tasks.task import Task, load_task
from manticore.training.prepare import fit_to_task
from manticore.training.pretrain import pretrain
from manticore.writing import write_json

FOLDER = RESULTS / "landscapes"
GPT = {"family": "gpt_neo", "layers": 4, "width": 64}
MAMBA = {"family": "mamba", "layers": 4, "width": 80}
LLAMA = {"family": "llama", "layers": 4, "width": 64}
SMALL_MAMBA = {"family": "mamba", "layers": 6, "width": 64, "config": {"state_size": 8}}
TUNING = Finetune(steps=300, batch_size=16, lr=2e-3)


@dataclass(frozen=True)
class Case:
    """A hybrid and a task."""

    task: str
    options: dict[str, Any]
    blocks: int = 2
    units: int = 4
    parents: tuple[dict[str, Any], ...] = (GPT, MAMBA)
    texts: tuple[str, ...] = ()
    """What each parent has read, with one tokenizer for all of it, where that is not the same."""
    later: bool = False
    """Measured after the others."""


SOURCES = {"code": "stdlib", "english": "docstrings"}
"""Source of the mixture → text."""
MIXTURE = {"max_bytes": TEXT_BYTES, "sources": {name: {"text": text, "share": 0.5} for name, text in SOURCES.items()}}
"""Options of the task."""

CASES = {
    "recall-64": Case("mad/in-context-recall", {"seq_len": 64}),
    "recall-32": Case("mad/in-context-recall", {"seq_len": 32}),
    "noisy-recall-32": Case("mad/noisy-in-context-recall", {"seq_len": 32}),
    "selective-copying-64": Case("mad/selective-copying", {"seq_len": 64}),
    "listops-short": Case("listops-short", {}),
    "text-64": Case("text", {"length": 64, "max_bytes": TEXT_BYTES}),
    "two-sources-64": Case("text", {"length": 64, **MIXTURE}, texts=tuple(SOURCES.values())),
    "recall-32-second-pair": Case("mad/in-context-recall", {"seq_len": 32}, parents=(LLAMA, SMALL_MAMBA)),
    "recall-32-four-blocks": Case("mad/in-context-recall", {"seq_len": 32}, blocks=4, units=2),
    "recall-64-four-blocks": Case("mad/in-context-recall", {"seq_len": 64}, blocks=4, units=2, later=True),
    "recall-32-three-parents": Case("mad/in-context-recall", {"seq_len": 32}, parents=(GPT, MAMBA, LLAMA), later=True),
}


def parent(entry: dict[str, Any], seed: int, **options: Any) -> Path:
    """One parent, pretrained (cached)."""
    given = {"steps": 300, "batch_size": 16, "length": TOKENS, "max_bytes": TEXT_BYTES, "seed": seed, **options}
    return pretrain(**{**given, **entry})


def parents(case: Case, seed: int) -> list[Path]:
    """The parents of a case, each pretrained on its text."""
    if not case.texts:
        return [parent(entry, seed) for entry in case.parents]
    return [
        parent(entry, seed, text=text, tokenizer_texts=list(case.texts))
        for entry, text in zip(case.parents, case.texts, strict=True)
    ]


def prepared(case: Case, seed: int) -> tuple[Any, Task]:
    """The aligned supernet of a case, with the vocabulary or the classes of its task; and the task."""
    folders = parents(case, seed)
    task = load_task(case.task, tokenizer=load_tokenizer(folders[0]), **case.options)
    hybrid = manticore.combine(folders, num_blocks=case.blocks, seed=seed)
    # what its parents have read; they have no text in common where each has read another one
    read = task.data["train"].select_columns(["input_ids", "targets"]) if case.texts else None
    manticore.align(hybrid, read or read_corpus("stdlib", max_bytes=TEXT_BYTES), tokens=32_768, seed=seed)
    return fit_to_task(hybrid, task, seed), task


def measure(name: str, case: Case, seed: int, work: Path) -> Landscape:
    """All curves of one case and one seed."""
    supernet, task = prepared(case, seed)
    unit, settings = unit_flops(supernet, task, TUNING, None)
    objective = TestedObjective(
        supernet, task, settings, unit, work / f"{name}-{seed}", seed, cpu=True, until=marks(case.units)
    )
    said = f"{name}, seed {seed}"
    curves = objective.curves(
        lambda path, found: print(
            f"{said}: {path} {task.primary_metric} {found.points[path][MARKS].metric:.3f} after 1", flush=True
        )
    )
    return Landscape.of(
        curves, name=name, seed=seed, task=case.task, options=case.options, unit=unit, metric=task.primary_metric,
        parents=[entry["family"] for entry in case.parents],
    )  # fmt: skip


def recorded(name: str, seed: int) -> Landscape | None:
    """What an earlier call has measured."""
    file = FOLDER / f"{name}-{seed}.json"
    return Landscape.read(json.loads(file.read_text())) if file.exists() else None


def table(name: str, found: list[Landscape]) -> Table:
    """The truth: the metric of every path on the test split."""
    last = max(next(iter(found[0].points.values()))) // MARKS
    shown = [unit for unit in (1, 2, 4) if unit <= last]
    result = Table("path", *(f"{unit} units" for unit in shown), title=f"{name}: {found[0].facts['metric']} per seed")
    for path in found[0].points:
        cells = [" ".join(f"{abs(landscape.truth(unit)[path]):.3f}" for landscape in found) for unit in shown]
        result.add_row("".join(found[0].facts["parents"][k][0].upper() for k in path), *cells)
    return result


def main() -> int:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--work", type=Path, default=Path("~/.cache/manticore/landscapes").expanduser())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # the heavy ones last, so that a call that is cut short leaves all seeds of the others
    cases = sorted(arguments.only, key=lambda name: CASES[name].later)
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in cases]
    jobs.sort(key=lambda job: CASES[job[0]].later)
    for name, seed in jobs:
        if recorded(name, seed) is None:
            FOLDER.mkdir(parents=True, exist_ok=True)
            write_json(FOLDER / f"{name}-{seed}.json", measure(name, CASES[name], seed, arguments.work).to_dict())
    console = Console()
    for name in cases:
        found = [landscape for seed in range(arguments.seeds) if (landscape := recorded(name, seed)) is not None]
        if found:
            console.print(table(name, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
