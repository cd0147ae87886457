"""Searches replayed on tables of all designs: what they ask for, and what that is worth after so many trials.

A replay keeps the order in which a method asked for designs, in ``benchmarks/results/composer/replays/``, so it is
never computed twice. Regret is the loss of the best design among the first t, less the table's best, in spreads:
standard deviations of the table's losses. Trials are distinct designs for every method.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from composer_tables import FOLDER, Kept

from manticore.experiments.intervals import mean_interval
from manticore.registry import resolve
from manticore.search.designs.aggregation import aggregate, best_cluster
from manticore.search.designs.scores import Goal, Scores
from manticore.search.designs.space import Design
from manticore.writing import write_json

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "gp": ("gp", {}),
    "gp, 6 drawn first": ("gp", {"first": 6}),
    "gp, noiseless": ("gp", {"noiseless": True}),
    "qlognei": ("qlognei", {}),
    "tpe": ("tpe", {}),
    "evolution": ("evolution", {"population": 8, "generations": 1000}),
}
"""Shown name → method and options."""

GOAL = (Goal("loss"),)


def available() -> list[str]:
    """Methods that can run here: BoTorch is optional."""
    return [name for name in METHODS if name != "qlognei" or importlib.util.find_spec("botorch")]


def asked(name: str, kept: Kept, seen: Mapping[Design, float], seed: int, trials: int) -> list[Design]:
    """What a method asks for, distinct, in order."""
    method, options = METHODS[name]
    scores = Scores(kept.space, GOAL)
    order: dict[Design, None] = {}
    for batch in resolve("design", method)(scores, seed, trials, **options):
        for design in batch:
            order[design] = None
            scores.found.setdefault(design, {"loss": seen[design]})
        if len(order) >= trials:
            break
    return list(order)[:trials]


class Replays:
    """The replays of one method on one table, kept.

    Args:
        kept: the table.
        name: of the method.
        view: ``"mean"``: the method sees the means over all seeds, which also judge it; ``"one"``: it sees one seed and
            is judged by the others.
        trials: distinct designs.
    """

    def __init__(self, kept: Kept, name: str, view: str, trials: int) -> None:
        self.kept, self.name, self.view, self.trials = kept, name, view, trials
        plain = name.replace(",", "").replace(" ", "-")
        self._file = FOLDER / "replays" / f"{kept.name}-{plain}-{view}-{trials}.json"
        self.seeds = kept.whole()
        # another table would be another truth
        held = json.loads(self._file.read_text()) if self._file.exists() else {}
        same = held.get("losses") == self._digest()
        self._orders: dict[str, list[str]] = held.get("orders", {}) if same else {}

    def _digest(self) -> float:
        return round(math.fsum(value for seed in self.seeds for value in self.kept.of_seeds([seed]).values()), 4)

    def tables(self, replay: int) -> tuple[dict[Design, float], dict[Design, float]]:
        """What is seen, and what judges."""
        if self.view == "mean" or len(self.seeds) == 1:
            both = self.kept.of_seeds(self.seeds)
            return both, both
        one = self.seeds[replay % len(self.seeds)]
        return self.kept.of_seeds([one]), self.kept.of_seeds(seed for seed in self.seeds if seed != one)

    def order(self, replay: int) -> list[Design]:
        """What was asked for in one replay."""
        if str(replay) not in self._orders:
            found = asked(self.name, self.kept, self.tables(replay)[0], replay, self.trials)
            self._orders[str(replay)] = [self.kept.space.spelled(design) for design in found]
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {"losses": self._digest(), "orders": self._orders})
        return [self.kept.space.read(text) for text in self._orders[str(replay)]]

    def outcomes(self, replays: int, after: int) -> list[tuple[float, bool]]:
        """Regret in spreads, and whether it is the table's best, of each replay after so many trials."""
        found = []
        for replay in range(replays):
            seen, truth = self.tables(replay)
            chosen = min(self.order(replay)[:after], key=lambda design: seen[design])
            least = min(truth.values())
            found.append(((truth[chosen] - least) / statistics.pstdev(truth.values()), truth[chosen] == least))
        return found


def summary(found: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Mean regret and share of hits, with 95 % intervals."""
    regret, interval = mean_interval([each for each, _ in found])
    hits, count = sum(hit for _, hit in found), len(found)
    # Wilson's interval
    share, z = hits / count, 1.96
    middle, half = (share + z * z / (2 * count)), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = ((middle + sign * half) / (1 + z * z / count) for sign in (-1, 1))
    return {
        "regret": round(regret, 4), "interval": [round(each, 4) for each in interval or (regret, regret)],
        "best": round(share, 3), "best_interval": [round(low, 3), round(high, 3)], "replays": count,
    }  # fmt: skip


def aggregates(replays: Replays, count: int, after: int) -> dict[str, dict[str, Any]]:
    """Ranks, 1 is best, of N_0, N_1, N_all and of the best single candidate, by the table that judges."""
    ways: dict[str, Callable[[Scores], Design]] = {
        "best single": lambda scores: min(scores.found, key=lambda design: scores.found[design]["loss"]),
        "N_0": lambda scores: aggregate(best_cluster(scores), 0),
        "N_1": lambda scores: aggregate(best_cluster(scores), 1),
        "N_all": lambda scores: aggregate(best_cluster(scores), None),
    }
    ranks: dict[str, list[float]] = {way: [] for way in ways}
    for replay in range(count):
        seen, truth = replays.tables(replay)
        order = sorted(truth, key=lambda design: truth[design])
        scores = Scores(replays.kept.space, GOAL)
        scores.found = {design: {"loss": seen[design]} for design in replays.order(replay)[:after]}
        for way, choose in ways.items():
            ranks[way].append(order.index(choose(scores)) + 1)
    return {way: _mean(values) for way, values in ranks.items()}


def _mean(values: Iterable[float]) -> dict[str, Any]:
    mean, interval = mean_interval(list(values))
    return {"rank": round(mean, 2), "interval": [round(each, 2) for each in interval or (mean, mean)]}
