"""Records of studies of designs as a search writes them: any objectives, any number of trials, and the odd ones."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

LETTERS = {"A": "grouped-query-attention", "M": "swiglu", "S": "mamba"}


def _layers(design: str) -> list[Any]:
    layers: list[Any] = [LETTERS[letter] for letter in design]
    # a second attention layer takes the keys and values of the first
    places = [place for place, letter in enumerate(design) if letter == "A"]
    if len(places) > 2:
        shares = {"features_of": places[0], "features": ["keys", "values"]}
        layers[places[1]] = [LETTERS["A"], {"kv_heads": 2}, shares]
    mixers = [place for place, letter in enumerate(design) if letter == "S"]
    if len(mixers) > 1:
        layers[mixers[-1]] = [LETTERS["S"], {}, {"weights_of": mixers[0]}]
    return layers


def _measures(design: str, draws: random.Random) -> dict[str, float]:
    attention, depth = design.count("A"), len(design)
    quality = 2.6 - 0.11 * min(attention, 3) - 0.05 * min(design.count("S"), 2) - 0.03 * (design[0] == "A")
    return {
        "loss": quality + draws.gauss(0, 0.01),
        "mad": 0.2 + 0.1 * attention / depth + draws.gauss(0, 0.01),
        "parameters": 4096.0 * attention + 9011.0 * design.count("M") + 7200.0 * design.count("S"),
        "cache_bytes": 16384.0 * attention + 2048.0 * design.count("S"),
    }


def scored(design: str, draws: random.Random, repeats: int = 1) -> dict[str, Any]:
    """An entry with scores, without its name."""
    found = [_measures(design, draws) for _ in range(repeats)]
    mean = {key: sum(each[key] for each in found) / repeats for key in found[0]}
    curve = [[tokens, mean["loss"] + 2.5 * math.exp(-tokens / 30_000)] for tokens in range(0, 204_801, 25_600)]
    return {
        "layers": _layers(design),
        "measures": mean,
        "repeats": found if repeats > 1 else [],
        "curve": curve,
        "flops": 2.0e9 * repeats,
        "seconds": 1.5 * repeats,
        "failed": None,
        "stopped": None,
    }


def build_study(
    objectives: tuple[str, ...] = ("loss", "cache_bytes"),
    *,
    generations: int = 6,
    population: int = 8,
    layers: int = 6,
    repeats: int = 1,
) -> dict[str, Any]:
    """The record of an evolution over layer lists of three primitives, with three baselines."""
    draws = random.Random(0)
    trials: dict[str, dict[str, Any]] = {}
    populations: list[list[str]] = []
    for generation in range(generations):
        names = populations[-1][:2] if populations else []
        while len(names) < population:
            weights = [1 + generation, 3, 1 + generation / 2]
            name = "".join(draws.choices("AMS", weights, k=layers))
            if name in names:
                continue
            names.append(name)
            if name not in trials:
                bred = generation > 0
                trials[name] = {
                    "design": name,
                    **scored(name, draws, repeats),
                    "generation": generation,
                    "parents": names[:2] if bred else None,
                    "repaired": bred and draws.random() < 0.2,
                    "made": 2 * bred,
                    "invalid": 1 * bred,
                    "duplicates": 1 * bred,
                    "folder": f"designs/{name}",
                }
        populations.append(names)
    goals = [{"measure": measure, "maximise": measure == "mad"} for measure in objectives]
    baselines = [
        {"name": "transformer++", **scored("AM" * (layers // 2), draws, repeats)},
        {"name": "striped-mamba", **scored("SMSMAM"[:layers].ljust(layers, "M"), draws, repeats)},
        {"name": "sandwich", **scored("A" * (layers // 2) + "M" * (layers - layers // 2), draws, repeats)},
    ]
    return {
        "space": {"kind": "layers", "primitives": LETTERS, "layers": layers, "width": 32},
        "objectives": goals,
        "max": {},
        "method": {"name": "evolution", "population": population},
        "seed": 0,
        "trials": list(trials.values()),
        "generations": populations,
        "front": front(goals, trials),
        "baselines": baselines,
        "flops": sum(trial["flops"] for trial in trials.values()),
    }


def front(goals: list[dict[str, Any]], trials: dict[str, dict[str, Any]]) -> list[str]:
    """The designs that no other dominates."""

    def point(name: str) -> list[float]:
        return [trials[name]["measures"][g["measure"]] * (-1 if g["maximise"] else 1) for g in goals]

    def beats(one: list[float], other: list[float]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other))

    wanted = {goal["measure"] for goal in goals}
    points = {n: point(n) for n, t in trials.items() if not t["failed"] and wanted <= t["measures"].keys()}
    return [name for name, own in points.items() if not any(beats(other, own) for other in points.values())]


def write_study(folder: Path, record: dict[str, Any]) -> Path:
    """As a search leaves it; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
