"""Tables of all designs of small spaces, trained once and kept: what searches are replayed on.

    python benchmarks/composer_tables.py [--only text-64 …] [--seeds 4]

| table | lists | trained on | held-out loss in |
|---|---|---|---|
| text-64 | 64 of six layers of {attention, SwiGLU} | bytes of Python's standard library | nats per byte |
| english-64 | the same | bytes of docstrings | nats per byte |
| mad-64 | the same | MAD's fuzzy recall, vocabulary of 8, sequences of 32 | nats per answer token |
| text-729 | 729 of {attention, Mamba, SwiGLU} | as text-64 | nats per byte |

Width 32, attention of 4 heads, 200 steps of 32 sequences of 32 tokens (mad-64: 400), peak rate 3e-3. A design takes
2 to 12 CPU seconds per seed. A table resumes where it stopped: ``benchmarks/results/composer/<table>.json`` holds
every loss by design and seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from measure import RESULTS

from manticore.design_settings import Design as DesignSettings
from manticore.search.designs.layer_lists import LayerListSpace
from manticore.search.designs.space import Design
from manticore.search.designs.training import DesignTraining, Failed
from manticore.tasks.task import Task, load_task
from manticore.writing import write_json

FOLDER = RESULTS / "composer"
WIDTH, LAYERS = 32, 6
ATTENTION: list[Any] = ["mh-attention", {"num_heads": 4}]
TWO: dict[str, Any] = {"A": ATTENTION, "M": "swiglu"}
THREE: dict[str, Any] = {**TWO, "S": "mamba"}


class FuzzyRecall(DesignTraining):
    """Trains designs on a MAD task in place of a text."""

    @cached_property
    def task(self) -> Task:
        return load_task("mad/fuzzy-in-context-recall", vocab_size=8, seq_len=self.settings.length)


@dataclass(frozen=True)
class Table:
    """A space, and what its designs are trained on."""

    primitives: dict[str, Any]
    seeds: int
    settings: dict[str, Any] = field(default_factory=dict)
    training: type[DesignTraining] = DesignTraining
    layers: int = LAYERS
    width: int = WIDTH
    grown_by: int | None = None

    @property
    def space(self) -> LayerListSpace:
        """The lists of layers."""
        return LayerListSpace(primitives=self.primitives, layers=self.layers, width=self.width, grown_by=self.grown_by)


TABLES = {
    "text-64": Table(TWO, 4),
    "english-64": Table(TWO, 2, {"text": "docstrings"}),
    "mad-64": Table(TWO, 2, {"steps": 400}, FuzzyRecall),
    "text-729": Table(THREE, 2),
    # not whole: what searches of 12 layers asked for
    "text-12": Table(TWO, 3, layers=12, width=48, grown_by=4),
}


class Kept:
    """The losses of a table, on disk after every training."""

    def __init__(self, name: str) -> None:
        self.name, self.table = name, TABLES[name]
        self.space = self.table.space
        self._file = FOLDER / f"{name}.json"
        held = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.losses: dict[str, dict[str, float]] = held.get("losses", {})
        """Spelled design → seed → held-out loss."""
        self.seconds: float = held.get("seconds", 0.0)
        self._training: dict[int, DesignTraining] = {}

    def loss(self, design: Design, seed: int) -> float:
        """The held-out loss of a design, trained now if it was not before; infinite where it failed."""
        spelled = self.space.spelled(design)
        known = self.losses.setdefault(spelled, {})
        if str(seed) not in known:
            begun = time.process_time()
            if seed not in self._training:
                settings = DesignSettings(**{"validation_examples": 2048, **self.table.settings})
                self._training[seed] = self.table.training(settings, seed=seed, cpu=True)
            try:
                known[str(seed)] = round(self._training[seed].of(self.space, design).measures["loss"], 6)
            except Failed:
                known[str(seed)] = float("inf")
            self.seconds += time.process_time() - begun
            FOLDER.mkdir(parents=True, exist_ok=True)
            write_json(
                self._file,
                {
                    "space": self.space.key, "settings": self.table.settings, "seconds": round(self.seconds, 1),
                    "losses": dict(sorted(self.losses.items())),
                },
            )  # fmt: skip
        return known[str(seed)]

    def fill(self, seeds: Iterable[int]) -> None:
        """Train all designs with these seeds."""
        for seed in seeds:
            for design in self.space.designs():
                self.loss(design, seed)
            print(f"{self.name}: seed {seed}, {self.seconds / 60:.0f} CPU minutes in all", flush=True)

    def whole(self) -> list[int]:
        """The seeds that all designs have."""
        seeds = {int(seed) for found in self.losses.values() for seed in found}
        if len(self.losses) < self.space.size:
            return []
        return sorted(seed for seed in seeds if all(str(seed) in found for found in self.losses.values()))

    def of_seeds(self, seeds: Iterable[int]) -> dict[Design, float]:
        """Design → mean loss over some seeds."""
        chosen = [str(seed) for seed in seeds]
        return {
            self.space.read(spelled): sum(found[seed] for seed in chosen) / len(chosen)
            for spelled, found in self.losses.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    whole = [name for name in TABLES if name != "text-12"]
    parser.add_argument("--only", nargs="+", choices=whole, default=whole)
    parser.add_argument("--seeds", type=int, help="Default: those of the table.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        Kept(name).fill(range(given.seeds or TABLES[name].seeds))


if __name__ == "__main__":
    main()
