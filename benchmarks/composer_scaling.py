"""Does the order of small designs hold when they are stacked to 8 and 30 times their size?

    python benchmarks/composer_scaling.py [--seeds 2] [--sizes 1 8 30]      # about 3 CPU hours; it resumes

The best, median and worst list of ``benchmarks/results/composer/text-64.json``, the designs that ``benchmarks/star.py``
recommends where it has run, and hand-made ones, all of width 32 and about 3 x 10^4 parameters, are scaled by
``manticore.stacks.scaling``: stacked, all at the same width, to 8 and 30 times 30,000 parameters. Each is trained on
bytes of Python's standard library, larger ones on more tokens (200, 400, 800 steps), with two seeds.

Printed and kept in ``benchmarks/results/composer/scaling.json``: held-out loss of every size; rank correlation of the
small losses with the large ones, with its interval (bar: best before median and worst); the cache at 4,096 tokens as a
share of Transformer++'s, small and large; training and decode tokens per CPU second of the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from composer_tables import ATTENTION, FOLDER, THREE, TWO, WIDTH, Kept
from measure import RESULTS, interleaved, write_json
from rich.console import Console
from rich.table import Table

from manticore.design_settings import Design as DesignSettings
from manticore.errors import ManticoreError
from manticore.experiments.fits.ranks import rank_correlation
from manticore.option_types import Workload
from manticore.search.designs.data import BYTE_VOCABULARY
from manticore.search.designs.layer_lists import runs_written_out
from manticore.search.designs.measures import measured
from manticore.search.designs.training import DesignTraining, Failed
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM
from manticore.stacks.scaling import scaled
from manticore.stacks.sizes import cache_bytes, layer_parameters
from manticore.writing import write_json as write

PARAMETERS = 30_000
SIZES = {1: (WIDTH, 200), 8: (64, 400), 30: (96, 800)}
"""Times the parameters → width, and steps of training."""
HAND_MADE: dict[str, list[Any]] = {
    "Transformer++": [ATTENTION, "swiglu"] * 3,
    "striped Mamba": ["mamba", "mamba", ATTENTION, "swiglu"],
    "sandwich": [ATTENTION, ATTENTION, "swiglu", ATTENTION, "swiglu", "swiglu"],
    "MambaFormer": ["mamba", *[["mh-attention", {"num_heads": 4, "rotary": False}], "mamba"] * 2],
}
TOKENS = 4096
_FILE = FOLDER / "scaling-losses.json"


def designs() -> dict[str, StackConfig]:
    """Name → the small stack."""
    kept = Kept("text-64")
    truth = kept.of_seeds(kept.whole())
    order = [kept.space.spelled(design) for design in sorted(truth, key=lambda design: truth[design])]
    if not order:
        raise SystemExit("no table of 64 lists: run benchmarks/composer_tables.py first")
    found = {
        f"{name} {text}": [TWO[letter] for letter in runs_written_out(text)]
        for name, text in (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1]))
    }
    found |= {f"STAR, {name}": layers for name, layers in star()}
    return {name: StackConfig(layers=layers, hidden_size=WIDTH) for name, layers in (found | HAND_MADE).items()}


def star() -> Iterator[tuple[str, list[Any]]]:
    """What the evolution of genomes recommends: the best of each run, and the cheapest of those with a cost."""
    file = RESULTS / "star.json"
    rows = [json.loads(file.read_text())] if file.exists() else []
    while rows:
        each = rows.pop(0)
        if isinstance(each, list):
            rows += each
        elif isinstance(each, dict):
            name = str(each.get("design", ""))
            if "layers" in each and (": best loss" in name or ": fewest" in name) and not name.startswith("random"):
                yield name, each["layers"]
            else:
                rows += each.values()


def larger(small: StackConfig, times: int) -> StackConfig:
    """The small stack at another size."""
    return small if times == 1 else scaled(small, times * PARAMETERS, "stack", width=SIZES[times][0])


def losses(names: Mapping[str, StackConfig], sizes: list[int], seeds: int) -> dict[str, dict[str, list[float]]]:
    """Design → size → held-out losses, one per seed; trained where they are not known."""
    known: dict[str, float] = json.loads(_FILE.read_text()) if _FILE.exists() else {}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for times in sizes:
        settings = DesignSettings(steps=SIZES[times][1], validation_examples=2048)
        for seed in range(seeds):
            training = DesignTraining(settings, seed=300 + seed, cpu=True)
            for name, small in names.items():
                config = larger(small, times)
                key = json.dumps([config.layers, config.hidden_size, settings.steps, seed])
                if key not in known:

                    def make(config: StackConfig = config, **sizes: int) -> StackConfig:
                        longest = {"vocab_size": sizes["vocab_size"], "max_position_embeddings": sizes["positions"]}
                        return StackConfig.from_dict({**config.to_dict(), **longest})

                    try:
                        known[key] = training.of_config(make, name).measures["loss"]
                    except Failed as failure:
                        print(f"{name}, {times} times: {failure}", flush=True)
                        known[key] = float("inf")
                    FOLDER.mkdir(parents=True, exist_ok=True)
                    write(_FILE, known)
                    print(f"{name}, {times} times, seed {seed}: {known[key]:.4f}", flush=True)
                found[name].setdefault(str(times), []).append(round(known[key], 5))
    return found


def speeds(names: Mapping[str, StackConfig], times: int) -> dict[str, dict[str, float]]:
    """Tokens per CPU second of a training step on 32 sequences of 32 bytes, and of decoding after 512 tokens."""
    models = {
        name: StackForCausalLM(StackConfig.from_dict({**larger(small, times).to_dict(), "vocab_size": BYTE_VOCABULARY}))
        for name, small in names.items()
    }
    batch = torch.randint(BYTE_VOCABULARY, (32, 32))

    def step(model: StackForCausalLM) -> None:
        model.train()
        loss = model(input_ids=batch, labels=batch).loss
        assert loss is not None
        loss.backward()
        model.zero_grad()

    seconds = interleaved({name: lambda model=model: step(model) for name, model in models.items()}, rounds=5)
    found = {}
    for name, model in models.items():
        decode = measured(model, ["decode_ms"], Workload(512, 1))["decode_ms"]
        found[name] = {
            "training_tokens_per_s": round(batch.numel() / statistics.median(seconds[name])),
            "decode_tokens_per_s": round(1000 / decode, 1),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(SIZES), default=list(SIZES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    small = {}
    for name, config in designs().items():
        try:
            for times in given.sizes:
                larger(config, times)
            small[name] = config
        except ManticoreError as error:
            print(f"{name} is left out: {error}")
    trained = losses(small, given.sizes, given.seeds)
    means = {name: {size: statistics.fmean(each) for size, each in of.items()} for name, of in trained.items()}
    largest = max(given.sizes)
    speed = speeds(small, largest)
    rows = {}
    for name, config in small.items():
        rows[name] = {
            "losses": trained[name],
            "parameters": {str(times): layer_parameters(larger(config, times)) for times in given.sizes},
            "cache_share": {
                str(times): round(
                    cache_bytes(larger(config, times), TOKENS)
                    / cache_bytes(larger(small["Transformer++"], times), TOKENS),
                    3,
                )
                for times in given.sizes
            },
            **speed[name],
        }
    ranks = {}
    for times in given.sizes[1:]:
        chosen = [name for name in small if all(each < float("inf") for each in means[name].values())]
        first, second = ([means[name][str(size)] for name in chosen] for size in (given.sizes[0], times))
        of_lists = [means[name][str(times)] for name in small if name.split()[0] in ("best", "median", "worst")]
        ranks[str(times)] = {
            "spearman": rank_correlation(first, second).to_dict(),
            "best_before_median_and_worst": of_lists[0] == min(of_lists),
        }
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_json("composer/scaling", {"designs": rows, "ranks": ranks, "letters": THREE})
    table = Table(
        "design", *(f"loss x {times}" for times in given.sizes), "parameters", "cache share", "train", "decode"
    )
    for name, row in rows.items():
        table.add_row(
            name,
            *(f"{means[name][str(times)]:.4f}" for times in given.sizes),
            ", ".join(map(str, row["parameters"].values())),
            ", ".join(map(str, row["cache_share"].values())),
            str(row["training_tokens_per_s"]),
            str(row["decode_tokens_per_s"]),
        )
    console = Console(width=180)
    console.print(table)
    for times, found in ranks.items():
        value = found["spearman"]["correlation"]
        print(f"1 to {times} times: Spearman {value}; best first: {found['best_before_median_and_worst']}")


if __name__ == "__main__":
    main()
