"""STAR's three searches at small scale: evolution of genomes against as many designs drawn at random.

    python benchmarks/star.py [--seeds 0 1 2] [--workers 2]      # about 6 hours of one core, 3 for one seed; it resumes
    python benchmarks/star.py --tiny --results build/star        # a minute: the same with populations of four

Genomes of 8 LIVs, width 32, 17 classes; a design trains for 200 steps of 32 sequences of 32 bytes of Python's standard
library. Three runs, for quality (held-out loss), for quality and parameters, and for quality and cache bytes (4,096
tokens, bfloat16): 16 designs drawn at random, then 18 generations of 14 children and 2 elites for the first seed, ten
for the others. One arm of as many distinct random designs serves all three. A design is trained once per seed, whoever
asks for it, and kept in ``benchmarks/results/star/trials-SEED.json``: all searches are replayed on these tables.

Hypervolume: everything divided by what Transformer++ (attention and SwiGLU in turns) has, up to the worst of the first
population, which the three runs share; for quality alone the best loss so far. It is that of measured losses, of which
the best of many are the lucky ones: so the designs that a run recommends are trained again with fresh seeds, beside
Transformer++ and striped Mamba, with as many tokens. Motifs, and the share of offspring that needed repair. Writes
``benchmarks/results/star.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, write_json
from rich.console import Console
from rich.table import Table

from manticore.design_settings import Design as DesignSettings
from manticore.experiments.hypervolume import history, hypervolume, reference_of
from manticore.experiments.intervals import mean_interval
from manticore.experiments.motifs import Motifs, motifs
from manticore.experiments.side_by_side import side_by_side
from manticore.search.designs.drawn import random_designs
from manticore.search.designs.evolution import evolution, offspring
from manticore.search.designs.genomes import GenomeSpace
from manticore.search.designs.method import Asking
from manticore.search.designs.scores import Goal, Scores
from manticore.search.designs.space import Design
from manticore.search.designs.training import DesignTraining, Failed
from manticore.search.designs.variation import ranked
from manticore.stacks.genome import Entry, decode, encode
from manticore.writing import write_json as write_record

RUNS = {
    "quality": ("loss",),
    "quality and parameters": ("loss", "parameters"),
    "quality and cache": ("loss", "cache_bytes"),
}
RANDOM = "random"
COSTS = ("parameters", "cache_bytes")
TRANSFORMER, STRIPED = "Transformer++", "striped Mamba"
OPTIONS: dict[str, dict[str, Any]] = {}
BASELINES: dict[str, list[Entry]] = {
    TRANSFORMER: ["sa-1", "gmemless"],
    STRIPED: ["rec-1", "rec-1", "sa-1", "gmemless"],
}
"""Repeated up to the depth of the search."""
FRESH = (101, 102, 103, 104)
"""Seeds of the trainings that designs are compared by, none of which a search has seen."""
BAR = 1.10
"""Hypervolume of evolution over that of random designs."""
PICKED = 8
"""Of the last population that are trained again, as published."""
MOTIFS = 8
"""Pairs and triples that the JSON holds."""


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    livs: int = 8
    width: int = 32
    steps: int = 200
    population: int = 16
    generations: int = 18
    fewer: int = 10
    """Generations of the seeds after the first."""
    elites: int = 2

    def trials(self, generations: int) -> int:
        """Trainings of a search."""
        return self.population + generations * (self.population - self.elites)


TINY = Scale(livs=3, width=16, steps=3, population=4, generations=2, fewer=1)


class Trials:
    """Designs trained with one seed, each once, in a file."""

    def __init__(self, folder: Path, space: GenomeSpace, settings: DesignSettings, seed: int, workers: int) -> None:
        self.space, self.seed, self._workers = space, seed, workers
        self._file = folder / f"trials-{seed}.json"
        self._key = {"space": space.key, "settings": settings.model_dump(mode="json"), "seed": seed}
        self.known: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            if {name: kept[name] for name in self._key} != self._key:
                sys.exit(f"{self._file} is of other settings. Fix: move it away, or another --results")
            self.known = kept["trials"]
        self._training = DesignTraining(settings, seed=seed, cpu=True)

    def of(self, designs: Iterable[Design]) -> dict[Design, dict[str, float] | None]:
        """The measures of designs; None of one that failed."""
        wanted = list(dict.fromkeys(designs))
        missing = [design for design in wanted if self.space.spelled(design) not in self.known]
        if missing:
            self._training.prepare()
        begun = time.perf_counter()
        for design, trained in self._trained(missing):
            self.known[self.space.spelled(design)] = trained
            write_record(self._file, {**self._key, "trials": self.known})
        if missing:
            seconds = (time.perf_counter() - begun) / len(missing)
            print(
                f"  seed {self.seed}: {len(missing)} trained, {len(self.known)} in all, {seconds:.1f} s each",
                flush=True,
            )
        return {design: self.known[self.space.spelled(design)].get("measures") for design in wanted}

    def _trained(self, designs: Sequence[Design]) -> Iterable[tuple[Design, dict[str, Any]]]:
        if self._workers > 1:
            return side_by_side(self._train, designs, self._workers)
        return ((design, self._train(design)) for design in designs)

    def _train(self, design: Design) -> dict[str, Any]:
        try:
            trained = self._training.of(self.space, design)
        except Failed as failure:
            return {"failed": str(failure)}
        return {"measures": trained.measures, "flops": trained.flops, "seconds": round(trained.seconds, 2)}


@dataclass
class Searched:
    """A search that was run to its end."""

    scores: Scores
    batches: list[list[Design]] = field(default_factory=list)

    def points(self, measures: Sequence[str], trials: int | None = None) -> list[list[tuple[float, ...]]]:
        """Per batch, what its new designs have of some measures; the first so many distinct ones only."""
        seen: set[Design] = set()
        found = []
        for batch in self.batches:
            new = [design for design in batch if design not in seen]
            new = new[: None if trials is None else trials - len(seen)]
            seen |= set(new)
            known = [self.scores.found[design] for design in new if design in self.scores.found]
            found.append([tuple(each[measure] for measure in measures) for each in known])
        return found


def run(asking: Asking, scores: Scores, trials: Trials) -> Searched:
    """Answer what a method asks for out of the table, which grows where it must."""
    searched = Searched(scores)
    for batch in asking:
        searched.batches.append(list(batch))
        for design, measures in trials.of(batch).items():
            if measures is None:
                scores.failed[design] = trials.known[trials.space.spelled(design)]["failed"]
            else:
                scores.found[design] = measures
    return searched


def searches(space: GenomeSpace, trials: Trials, scale: Scale, generations: int) -> dict[str, Searched]:
    """All runs of a seed, and the random arm."""
    count, found = scale.trials(generations), {}
    for name, measures in RUNS.items():
        print(f"seed {trials.seed}: {name}", flush=True)
        scores = Scores(space, [Goal(measure) for measure in measures])
        options = {"population": scale.population, "generations": generations, "elites": scale.elites}
        found[name] = run(evolution(scores, trials.seed, count, **options), scores, trials)
    print(f"seed {trials.seed}: {RANDOM}", flush=True)
    scores = Scores(space, [Goal("loss")])
    found[RANDOM] = run(random_designs(scores, trials.seed, count, batch=scale.population), scores, trials)
    return found


def baselines(space: GenomeSpace) -> dict[str, Design]:
    """The hand-made stacks, as genomes of the search's depth."""
    deep = {name: (layers * space.livs)[: space.livs] for name, layers in BASELINES.items()}
    return {name: space.read(str(encode(layers))) for name, layers in deep.items()}


def front_growth(found: Mapping[str, Searched], unit: Mapping[str, float], trials: int) -> list[dict[str, Any]]:
    """Of each run and of the random arm, judged alike: hypervolume, or the best loss, over generations.

    Args:
        found: searches of one seed.
        unit: what Transformer++ has, of every measure.
        trials: how many designs of each are looked at.
    """
    rows = []
    for name, measures in RUNS.items():
        scaled = {
            arm: [
                [tuple(value / unit[measure] for value, measure in zip(point, measures)) for point in batch]
                for batch in found[arm].points(measures, trials)
            ]
            for arm in (name, RANDOM)
        }
        reference = reference_of(scaled[name][0])
        row: dict[str, Any] = {"run": name, "trials": trials, "reference": reference}
        for arm, label in ((name, "evolution"), (RANDOM, RANDOM)):
            row[label] = history(scaled[arm], reference)
            row[f"{label}_best_loss"] = min(point[0] for batch in scaled[arm] for point in batch) * unit["loss"]
        row["ratio"] = row["evolution"][-1] / row[RANDOM][-1] if row[RANDOM][-1] else None
        row["transformer"] = hypervolume([(1.0,) * len(measures)], reference)
        rows.append(row)
    return rows


def recommended(found: Mapping[str, Searched], unit: Mapping[str, float]) -> dict[str, Design]:
    """What each run recommends: the best by loss, the cheapest that is no worse than Transformer++, and the best eight
    of the last population, in the order of NSGA-II."""
    names: dict[str, Design] = {}
    for name, measures in RUNS.items():
        scores = found[name].scores
        best = scores.best()
        assert best is not None
        names[f"{name}: best loss"] = best
        for measure in measures[1:]:
            good = [design for design in scores.front() if scores.found[design]["loss"] <= unit["loss"]]
            if good:
                names[f"{name}: fewest {measure.replace('_', ' ')}"] = min(good, key=lambda d: scores.found[d][measure])
        for place, design in enumerate(ranked(found[name].batches[-1], scores)[:PICKED]):
            names[f"{name}: last population, {place + 1}"] = design
    best_random = found[RANDOM].scores.best()
    assert best_random is not None
    return {**names, "random: best loss": best_random}


def compared(designs: Mapping[str, Design], tables: Sequence[Trials]) -> list[dict[str, Any]]:
    """Designs with fresh seeds: loss with its interval, its lead over the baselines seed by seed, and costs."""
    measured = [table.of(designs.values()) for table in tables]
    rows = []
    for name, design in designs.items():
        space = tables[0].space
        row: dict[str, Any] = {"design": name, "genome": space.spelled(design), "layers": decode(space.genome(design))}
        here = [found[design] for found in measured]
        if any(each is None for each in here):
            rows.append({**row, "failed": True})
            continue
        losses = [each["loss"] for each in here if each is not None]
        row["losses"], (row["loss"], row["interval"]) = losses, mean_interval(losses)
        first = here[0] or {}
        row |= {measure: first[measure] for measure in ("parameters", "cache_bytes", "state_bytes", "flops")}
        for baseline in (TRANSFORMER, STRIPED):
            theirs = [found[designs[baseline]] or {} for found in measured]
            leads = [each.get("loss", float("nan")) - loss for each, loss in zip(theirs, losses)]
            row[f"lead over {baseline}"] = mean_interval(leads)
            for measure in COSTS:
                row[f"{measure} ÷ {baseline}"] = first[measure] / theirs[0][measure]
        rows.append(row)
    return rows


def motif_rows(searched: Searched, generation: int) -> dict[str, Any]:
    """Classes, links, pairs and triples of a generation."""
    space = searched.scores.space
    assert isinstance(space, GenomeSpace)
    found: Motifs = motifs(decode(space.genome(design)) for design in searched.batches[generation])
    runs = {
        length: [
            {"run": each, "times": times, "lift": found.lift(each), "share": found.share_holding(each)}
            for each, times in counts.most_common(MOTIFS)
        ]
        for length, counts in (("pairs", found.pairs), ("triples", found.triples))
    }
    links = [
        {"kind": link.kind, "layer": link.layer, "features": link.features, "times": times}
        for link, times in found.links.most_common()
    ]
    shares = {name: found.share_of_layers(name) for name, _ in found.layers.most_common()}
    return {
        "generation": generation, "classes": shares, **runs, "links": links,
        "distances": dict(sorted(found.distances.items())), "mean_distance": found.mean_distance(),
        "links_per_design": found.distances.total() / found.designs,
    }  # fmt: skip


def invalid(searched: Searched) -> dict[str, Any]:
    """The share of offspring that was not legal, in all and by generation."""
    rows = offspring(searched.scores.notes.values())[1:]
    made = sum(row["made"] for row in rows)
    return {
        "made": made,
        "invalid": sum(row["invalid"] for row in rows) / made,
        "duplicates": sum(row["duplicates"] for row in rows) / made,
        "by_generation": [row["invalid"] / row["made"] if row["made"] else None for row in rows],
    }


def figures(args: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Train what is missing, and all that is printed."""
    space = GenomeSpace(livs=scale.livs, width=scale.width, options=OPTIONS)
    settings = DesignSettings(space="genomes", objectives=["loss", "parameters", "cache_bytes"], steps=scale.steps)
    folder = args.results / "star"
    folder.mkdir(parents=True, exist_ok=True)
    hand_made = baselines(space)
    found: dict[str, Any] = {
        "scale": vars(scale),
        "space": space.key,
        "space_size": space.size,
        "growth": [],
        "equal": [],
    }
    for seed in args.seeds:
        trials = Trials(folder, space, settings, seed, args.workers)
        generations = scale.generations if seed == args.seeds[0] else scale.fewer
        unit = trials.of(hand_made.values())[hand_made[TRANSFORMER]]
        assert unit is not None, "Transformer++ failed"
        here = searches(space, trials, scale, generations)
        growth = front_growth(here, unit, scale.trials(generations))
        found["growth"] += [{"seed": seed, **row} for row in growth]
        found["equal"] += [{"seed": seed, **row} for row in front_growth(here, unit, scale.trials(scale.fewer))]
        if seed == args.seeds[0]:
            found["unit"] = unit
            found["invalid"] = {name: invalid(here[name]) for name in RUNS}
            shown = sorted({0, generations // 2, len(here["quality"].batches) - 1})
            found["motifs"] = {
                name: [motif_rows(here[name], each) for each in shown if each < len(here[name].batches)]
                for name in RUNS
            }
            found["fronts"] = {
                name: [{"genome": space.spelled(d), **here[name].scores.found[d]} for d in here[name].scores.front()]
                for name in RUNS
            }
            chosen = recommended(here, unit)
    fresh = [Trials(folder, space, settings, seed, args.workers) for seed in args.fresh]
    found["compared"] = compared({**hand_made, **chosen}, fresh)
    return found


def verdicts(found: Mapping[str, Any]) -> Iterable[str]:
    """What it comes to, losses first."""
    first = [row for row in found["growth"] if row["seed"] == found["growth"][0]["seed"]]
    for row in first:
        equal = [each["ratio"] for each in found["equal"] if each["run"] == row["run"] and each["ratio"] is not None]
        if row["run"] == "quality":
            best = f"best loss {row['evolution_best_loss']:.3f}, of random designs {row['random_best_loss']:.3f}"
            yield f"quality: after {row['trials']} trainings {best}, of Transformer++ {found['unit']['loss']:.3f}"
            continue
        held = "missed" if row["ratio"] is None or row["ratio"] < BAR else "held"
        shown = "–" if row["ratio"] is None else f"{row['ratio']:.3f}"
        text = f"{row['run']}: hypervolume ÷ random after {row['trials']} trainings {shown} (bar {BAR:.2f} {held})"
        if equal:
            mean, interval = mean_interval(equal)
            within = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
            text += f"; after {found['equal'][0]['trials']}, mean of {len(equal)} seeds {mean:.3f}{within}"
        yield text
    for row in found["compared"]:
        if row["design"] not in BASELINES and not row.get("failed") and "last population" not in row["design"]:
            yield from (told(row, baseline) for baseline in BASELINES)
    for name in RUNS:
        rows = [row for row in found["compared"] if row["design"].startswith(f"{name}: last") and not row.get("failed")]
        for baseline in BASELINES:
            leads = [row[f"lead over {baseline}"] for row in rows]
            ahead, sure = sum(lead > 0 for lead, _ in leads), sum(span is not None and span[0] > 0 for _, span in leads)
            costs = ", ".join(
                f"{min(values):.2f} to {max(values):.2f} of its {measure.replace('_', ' ')}"
                for measure in COSTS
                if (values := [row[f"{measure} ÷ {baseline}"] for row in rows])
            )
            how_many = f"of {len(rows)} of the last population {ahead} ahead of {baseline}"
            yield f"{name}: {how_many}, {sure} surely, with {costs}"


def told(row: Mapping[str, Any], baseline: str) -> str:
    """A design against a baseline, in words."""
    lead, interval = row[f"lead over {baseline}"]
    sure = interval is not None and not interval[0] <= 0 <= interval[1]
    word = ("ahead of" if lead > 0 else "behind") if sure else "not told apart from"
    costs = [f"{row[f'{measure} ÷ {baseline}']:.2f} of its {measure.replace('_', ' ')}" for measure in COSTS]
    return f"{row['design']}: {word} {baseline} ({lead:+.3f} nats, fresh seeds), with {' and '.join(costs)}"


def tables(found: Mapping[str, Any]) -> Iterable[Table]:
    """Growth, best designs, motifs, offspring."""
    table = Table("run", "seed", "trainings", "evolution", "random", "ratio", "best loss", "of random")
    table.title = "hypervolume in units of Transformer++ (of quality: how far the best loss is below the worst start)"
    for row in [*found["growth"], *(row for row in found["equal"] if row not in found["growth"])]:
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.3f}"
        losses = (f"{row['evolution_best_loss']:.3f}", f"{row['random_best_loss']:.3f}")
        ends = (f"{row['evolution'][-1]:.4f}", f"{row['random'][-1]:.4f}")
        table.add_row(row["run"], str(row["seed"]), str(row["trials"]), *ends, ratio, *losses)
    yield table
    table = Table(
        "design", "genome", "loss", f"lead over {TRANSFORMER}", f"lead over {STRIPED}", "parameters", "cache bytes"
    )
    table.title = "fresh seeds, equal tokens; mean ± 95 % over seeds, leads positive where it is better"
    for row in found["compared"]:
        if row.get("failed"):
            table.add_row(row["design"], row["genome"], "failed")
            continue
        if "last population" in row["design"]:
            continue
        pairs = [(row["loss"], row["interval"]), row[f"lead over {TRANSFORMER}"], row[f"lead over {STRIPED}"]]
        cells = [f"{mean:.3f}" + (f" ± {(span[1] - span[0]) / 2:.3f}" if span else "") for mean, span in pairs]
        table.add_row(row["design"], row["genome"], *cells, f"{row['parameters']:,.0f}", f"{row['cache_bytes']:,.0f}")
    yield table
    for name, generations in found["motifs"].items():
        table = Table("generation", "classes", "pairs (lift)", "triples (lift)", "links", title=f"motifs: {name}")
        for each in generations:
            classes = ", ".join(f"{layer} {share:.2f}" for layer, share in list(each["classes"].items())[:6])
            runs = [
                ", ".join(f"{' '.join(run['run'])} {run['times']} ({run['lift']:.1f})" for run in each[length][:4])
                for length in ("pairs", "triples")
            ]
            kinds = ", ".join(f"{link['kind']} {link['layer']} {link['times']}" for link in each["links"][:4])
            far = "" if each["mean_distance"] is None else f"; {each['mean_distance']:.1f} apart"
            table.add_row(
                str(each["generation"]), classes, *runs, f"{each['links_per_design']:.1f} a design{far}: {kinds}"
            )
        yield table
    table = Table("run", "offspring", "invalid", "duplicates", "invalid by generation", title="offspring before repair")
    for name, row in found["invalid"].items():
        by = " ".join("–" if each is None else f"{each:.2f}" for each in row["by_generation"])
        table.add_row(name, str(row["made"]), f"{row['invalid']:.3f}", f"{row['duplicates']:.3f}", by)
    yield table


def main() -> int:
    """Train what is missing, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one in full")
    parser.add_argument("--fresh", type=int, nargs="+", default=list(FRESH))
    parser.add_argument("--workers", type=int, default=1, help="trainings at the same time")
    scale = Scale()
    for option in ("steps", "generations", "fewer"):
        parser.add_argument(f"--{option}", type=int, default=getattr(scale, option))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.tiny and args.results == RESULTS:
        parser.error("--tiny wants another --results: its figures mean nothing")
    scale = replace(scale, steps=args.steps, generations=args.generations, fewer=min(args.fewer, args.generations))
    found = figures(args, TINY if args.tiny else scale)
    found["verdicts"] = list(verdicts(found))
    if args.tiny:
        write_record(args.results / "star.json", found)
    else:
        write_json("star", found)
    console = Console(width=170)
    for table in tables(found):
        console.print(table)
    for line in found["verdicts"]:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
