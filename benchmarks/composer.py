"""Search of layer lists against the truth: every design of a small space is trained, and searches are replayed on that.

    python benchmarks/composer.py [--replays 100] [--only oracle searches aggregation live depth proxies]

Parts, each printed as a table and kept in ``benchmarks/results/composer/``; all of them resume:

- **oracle**: whether one seed ranks the designs as another does, over all of them and among those with as many
  attention layers (``benchmarks/composer_tables.py`` trains the tables: five to six CPU minutes a seed for 64 lists,
  an hour or more for 729, by estimate);
- **searches**: regret and P(best) of every method after 24 of 64 (48 of 729) distinct trials; seeing the truth, and
  seeing one seed while the others judge (100 replays: 4 minutes for each Gaussian process on 64 lists, 15 on 729);
- **aggregation**: ranks of N_0, N_1 and N_all beside the best single candidate's;
- **live**: a search that trains, 24 trials with a seed of its own, judged by the tables' seeds;
- **depth**: 12 layers, 48 trials each: one-shot, end-incremental and middle-incremental search, the lists that they
  find trained again with two fresh seeds (40 CPU minutes);
- **proxies**: whether fuzzy recall ranks the lists as English and as code do, and those as each other.

Scale: six layers of width 32, 205 thousand tokens; what is found here is found at this scale.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from composer_replays import GOAL, Replays, aggregates, available, summary
from composer_tables import FOLDER, TABLES, Kept
from measure import write_json
from rich.console import Console
from rich.table import Table

from manticore.experiments.fits.ranks import rank_correlation
from manticore.experiments.intervals import mean_interval
from manticore.registry import resolve
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design

AFTER = {"text-64": (8, 16, 24), "text-729": (24, 48)}
"""Table → trials after which searches are judged."""
LIVE_SEED = 100
"""Of searches that train: none of a table's."""
DEPTH_TRIALS, FRESH = 48, (201, 202)
BARS = {"regret": 0.15, "best": 0.6, "spearman": 0.7}


def oracle() -> dict[str, Any]:
    """How well seeds agree on the order of designs."""
    found = {}
    for name in ("text-64", "text-729", "english-64", "mad-64"):
        kept = Kept(name)
        seeds = kept.whole()
        if len(seeds) < 2:
            continue
        tables = [kept.of_seeds([seed]) for seed in seeds]
        pairs = [(a, b) for index, a in enumerate(tables) for b in tables[index + 1 :]]
        overall = [_spearman(a, b) for a, b in pairs]
        truth = kept.of_seeds(seeds)
        order = sorted(truth, key=lambda design: truth[design])
        found[name] = {
            "designs": len(truth), "seeds": len(seeds), "cpu_minutes": round(kept.seconds / 60, 1),
            "spearman": round(statistics.fmean(each[0] for each in overall), 3),
            "interval_of_the_first_pair": overall[0][1],
            "within_equal_attention": round(statistics.fmean(_within(kept, a, b) for a, b in pairs), 3),
            "spread": round(statistics.pstdev(truth.values()), 4),
            # of one seed, from the differences between two
            "noise": round(
                statistics.fmean(statistics.pstdev([a[d] - b[d] for d in a]) for a, b in pairs) / 2**0.5, 4
            ),
            "best": [[kept.space.spelled(design), round(truth[design], 4)] for design in order[:3]],
            "worst": [[kept.space.spelled(design), round(truth[design], 4)] for design in order[-3:]],
        }  # fmt: skip
    return found


def searches(replays: int) -> dict[str, Any]:
    """Regret and P(best) of every method."""
    found: dict[str, Any] = defaultdict(dict)
    for name, marks in AFTER.items():
        kept = Kept(name)
        if not kept.whole():
            continue
        for view in ("mean", "one") if len(kept.whole()) > 1 else ("mean",):
            for method in available():
                done = Replays(kept, method, view, marks[-1])
                found[f"{name}, {view}"][method] = {str(t): summary(done.outcomes(replays, t)) for t in marks}
                print(f"{name}, {view}: {method} {found[f'{name}, {view}'][method][str(marks[-1])]}", flush=True)
    return found


def aggregation(replays: int) -> dict[str, Any]:
    """Ranks of aggregated designs among all of their space."""
    found = {}
    for name, marks in AFTER.items():
        kept = Kept(name)
        for view in ("mean", "one") if len(kept.whole()) > 1 else ("mean",):
            if kept.whole():
                found[f"{name}, {view}"] = aggregates(Replays(kept, "gp", view, marks[-1]), replays, marks[-1])
    return found


def live() -> dict[str, Any]:
    """A search that trains, judged by seeds that it has not seen."""
    kept = Kept("text-64")
    order = _asked(kept, "gp", LIVE_SEED, 24, {})
    best = min(order, key=lambda design: kept.loss(design, LIVE_SEED))
    truth = kept.of_seeds(range(TABLES["text-64"].seeds))
    ranked = sorted(truth, key=lambda design: truth[design])
    return {
        "found": kept.space.spelled(best), "rank": ranked.index(best) + 1, "of": len(ranked),
        "spreads_behind": round((truth[best] - truth[ranked[0]]) / statistics.pstdev(truth.values()), 3),
    }  # fmt: skip


def depth() -> dict[str, Any]:
    """One-shot, end- and middle-incremental search of 12 layers with as many trials."""
    kept, found = Kept("text-12"), {}
    for name, method, options in [
        ("one-shot", "gp", {}),
        ("end-incremental", "end-incremental", {}),
        ("middle-incremental", "middle-incremental", {}),
        ("random", "random", {}),
    ]:
        order = [d for d in _asked(kept, method, LIVE_SEED, DEPTH_TRIALS, options) if len(d) == kept.table.layers]
        best = min(order, key=lambda design: kept.loss(design, LIVE_SEED))
        mean, interval = mean_interval([kept.loss(best, seed) for seed in FRESH])
        found[name] = {
            "found": kept.space.spelled(best), "whole_lists_trained": len(order), "loss": round(mean, 4),
            "interval": [round(each, 4) for each in interval or (mean, mean)],
            "as_searched": kept.loss(best, LIVE_SEED), "cpu_minutes": round(kept.seconds / 60, 1),
        }  # fmt: skip
        print(f"12 layers, {name}: {found[name]}", flush=True)
    transformer = kept.space.read("AM" * 6)
    found["AM repeated, not searched"] = {
        "found": "AM" * 6, "loss": round(statistics.fmean(kept.loss(transformer, seed) for seed in FRESH), 4)
    }  # fmt: skip
    return found


def proxies() -> dict[str, Any]:
    """Rank correlations between what designs are trained on."""
    tables = {name: Kept(name) for name in ("text-64", "english-64", "mad-64")}
    means = {name: kept.of_seeds(kept.whole()) for name, kept in tables.items() if kept.whole()}
    names, found = list(means), {}
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            value, interval = _spearman(means[one], means[other])
            found[f"{one} and {other}"] = {
                "spearman": value, "interval": interval,
                "within_equal_attention": round(_within(tables[one], means[one], means[other]), 3),
            }  # fmt: skip
    return found


def _asked(kept: Kept, method: str, seed: int, trials: int, options: Mapping[str, Any]) -> list[Design]:
    scores, order = Scores(kept.space, GOAL), []
    for batch in resolve("design", method)(scores, seed, trials, **options):
        for design in batch:
            scores.found[design] = {"loss": kept.loss(design, seed)}
            order.append(design)
            print(f"{kept.name}, {method}: {kept.space.spelled(design)} {kept.loss(design, seed):.4f}", flush=True)
    return order


def _spearman(one: Mapping[Design, float], other: Mapping[Design, float]) -> tuple[float, list[float]]:
    found = rank_correlation([one[d] for d in one], [other[d] for d in one]).correlation
    return round(found.value, 3), [round(each, 3) for each in found.interval or (found.value,) * 2]


def _within(kept: Kept, one: Mapping[Design, float], other: Mapping[Design, float]) -> float:
    """Spearman among lists with as many attention layers, weighed by how many there are."""
    groups: dict[int, list[Design]] = defaultdict(list)
    for design in one:
        groups[kept.space.spelled(design).count("A")].append(design)
    several = [group for group in groups.values() if len(group) > 5]
    values = [_spearman({d: one[d] for d in group}, other)[0] for group in several]
    return sum(value * len(group) for value, group in zip(values, several)) / sum(map(len, several))


PARTS = {
    "oracle": lambda given: oracle(),
    "searches": lambda given: searches(given.replays),
    "aggregation": lambda given: aggregation(given.replays),
    "live": lambda given: live(),
    "depth": lambda given: depth(),
    "proxies": lambda given: proxies(),
}


def show(part: str, found: Mapping[str, Any], console: Console) -> None:
    """A table of one part: a row per entry, a column per figure."""
    rows = found if all(isinstance(each, dict) for each in found.values()) else {part: found}
    if part == "searches":
        rows = {
            f"{table}, {method}, {after} trials": figures
            for table, methods in found.items()
            for method, marks in methods.items()
            for after, figures in marks.items()
        }
    elif part == "aggregation":
        rows = {f"{table}, {way}": figures for table, ways in found.items() for way, figures in ways.items()}
    columns = list(dict.fromkeys(key for figures in rows.values() for key in figures))
    table = Table(part, *columns)
    for name, figures in rows.items():
        table.add_row(name, *(str(figures.get(column, "")) for column in columns))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if given.only == list(PARTS):
        for name in ("text-64", "english-64", "mad-64", "text-729"):
            Kept(name).fill(range(TABLES[name].seeds))
    console = Console(width=200)
    for part in given.only:
        found = PARTS[part](given)
        write_json(f"composer/{part}", {"bars": BARS, "replays": given.replays, part: found})
        show(part, found, console)


if __name__ == "__main__":
    main()
