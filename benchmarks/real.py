"""A real checkpoint and its linear-time twins: what seven of thirty layers of SmolLM2-135M are worth without attention.

    python benchmarks/real.py            # about an hour and a half for each mixer; stages are kept in build/real
    python benchmarks/real.py --quick    # a fraction of the tokens and texts; its figures go to another file

The commands are those of docs/real.md: fetch, twin, combine, search --method swaps, distill. For each mixer a twin with
all layers exchanged is fitted layer by layer; every single exchange is scored on held-out text; dynamic programming
chooses the layers under a cache of at most 80 % of the parent's at 2,048 tokens; the mixers of the path that was chosen
learn from the parent's predictions. Sliding attention goes the same way: what a user would take otherwise. Beside the
chosen layers stand as many spread evenly and as many at the end, without distillation.

Text: English out of docstrings and Python's standard library, alike in size (``corpus.jsonl``); held-out documents are
held out from the fit, the search and the distillation. Scored: bits per byte of 2,048 tokens of held-out text, exact
match of the ends of held-out lines, a key hidden in held-out text, cache bytes, decoding. Writes
``benchmarks/results/real.json``.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import RESULTS, write_json
from rich.console import Console
from rich.table import Table

import manticore
from manticore.experiments.generating import generated
from manticore.tasks.corpus import read_corpus
from manticore.tasks.task import load_task
from manticore.tasks.text import split_documents
from manticore.training.saved_models import load_model

MIXERS = ("gated-delta-net", "linear-attention", "mamba-2", "sliding-attention")
LENGTH = 2048
LAYERS = 30
SHARE = 0.8
"""Of the parent's cache, that a path may have."""
BARS = {"bits_per_byte": 1.05, "points": 5}


@dataclass(frozen=True)
class Scale:
    """How much is read and scored."""

    fit_tokens: int = 32_768
    swap_examples: int = 4
    distill_steps: int = 30
    distill_batch: int = 2
    texts: int = 12
    answers: int = 32
    needles: int = 24
    lengths: tuple[int, ...] = (512, 2048)


FULL = Scale()
QUICK = Scale(
    fit_tokens=8192, swap_examples=1, distill_steps=10, distill_batch=1, texts=2, answers=4, needles=4, lengths=(512,)
)


class Bench:
    """The stages, each made once.

    Args:
        place: where models are kept.
        scale: how much is read.
        name: of the JSON.
    """

    def __init__(self, place: Path, scale: Scale, name: str) -> None:
        self.place, self.scale, self.name = place, scale, name
        place.mkdir(parents=True, exist_ok=True)
        self._file = RESULTS / f"{name}.json"
        self.found: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}
        for part in ("seconds", "fits", "chosen", "swaps", "models"):
            self.found.setdefault(part, {})

    def keep(self) -> None:
        """Write what is known."""
        write_json(self.name, {key: value for key, value in self.found.items() if key != "environment"})

    def made(self, name: str, verb: str, *arguments: str) -> Path:
        """The folder that a verb writes, made now where it is not there."""
        folder = self.place / name
        done = self.place / f"{name}.done"
        if not done.exists():
            print(f"manticore {verb} {' '.join(arguments)} -o {folder}", flush=True)
            resumes = ["--resume"] if verb in ("search", "distill") and folder.exists() else []
            begun = time.perf_counter()
            command = [sys.executable, "-m", "manticore", verb, *arguments, "-o", str(folder), *resumes]
            subprocess.run(command, check=True)
            self.found["seconds"][name] = round(time.perf_counter() - begun)
            done.touch()
            self.keep()
        return folder

    def text(self, name: str) -> Path:
        """A text of both sources, alike in size: ``corpus``, or ``fit``, which is without what is held out of it."""
        file = self.place / f"{name}.jsonl"
        if not file.exists():
            prose, size = list(read_corpus("docstrings")), 0
            whole = list(prose)
            for document in sorted(read_corpus("stdlib"), key=lambda each: hashlib.sha256(each.encode()).hexdigest()):
                size += len(document)
                if size <= sum(map(len, prose)):
                    whole.append(document)
            chosen = split_documents(whole)["train"] if name == "fit" else whole
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
        return file

    def task(self, length: int) -> list[str]:
        """How verbs are told to read it."""
        source = self.text("corpus")
        return ["--task", "text", "--task-option", f"source={source}", "--task-option", f"length={length}"]

    def searched(self, mixer: str) -> Path:
        """The path that was chosen, untrained."""
        scale, parent = self.scale, self.parent()
        fit = ["--text", str(self.text("fit")), "--tokens", str(scale.fit_tokens), "--batch-size", "1"]
        if mixer != "sliding-attention":
            # which starts as what it shall be
            twin = self.made(f"twin-{mixer}", "twin", str(parent), "--mixer", mixer, *fit)
        else:
            twin = self.made(f"twin-{mixer}", "twin", str(parent), "--mixer", mixer)
        hybrid = self.made(f"hybrid-{mixer}", "combine", str(parent), str(twin), "--num-blocks", str(LAYERS))
        return self.made(
            f"searched-{mixer}", "search", str(hybrid), *self.task(512), "--method", "swaps",
            "--max", f"cache_bytes={SHARE:.0%}", "--workload", f"tokens={LENGTH},batch=1",
            "--validation-examples", str(scale.swap_examples), "--batch-size", "4",
        )  # fmt: skip

    def distilled(self, mixer: str, searched: Path) -> Path:
        """The same after it has learned from the parent."""
        scale = self.scale
        return self.made(
            f"distilled-{mixer}", "distill", str(searched), str(self.parent()), *self.task(512),
            "--phases", "logits", "--trainable", "mixers", "--lr", "3e-4", "--steps", str(scale.distill_steps),
            "--batch-size", str(scale.distill_batch), "--test-examples", "8",
        )  # fmt: skip

    def parent(self) -> Path:
        """The checkpoint as it is downloaded."""
        return self.made("smollm2", "fetch", "smollm2")

    def scores(self, name: str, load: Callable[[], Any], *, writes: bool = True) -> dict[str, Any]:
        """What a model scores, kept under a name."""
        known: dict[str, Any] = self.found["models"].get(name, {})
        if "bits_per_byte" not in known or (writes and "exact_match" not in known):
            model, tokenizer = load()
            task = load_task("text", tokenizer=tokenizer, source=str(self.text("corpus")), length=LENGTH)
            print(f"{name}: scored", flush=True)
            metrics = manticore.evaluate(model, task, max_examples=self.scale.texts, batch_size=2)
            known = {"bits_per_byte": metrics["bits_per_byte"], "loss": metrics["loss"]}
            if writes:
                found = generated(
                    model, task, tokenizer,
                    examples=self.scale.answers, lengths=self.scale.lengths, hidden=self.scale.needles, say=print,
                )  # fmt: skip
                known |= {
                    "exact_match": found.exact_match, "answers": found.examples,
                    "recall": {str(each.length): each.share for each in found.recall},
                    "first_token_ms": {str(each.context): round(each.first_token_ms) for each in found.speed},
                    "tokens_per_s": {str(each.context): round(each.tokens_per_second, 1) for each in found.speed},
                    "cache_bytes": found.speed[-1].cache_bytes,
                    "samples": [each.written for each in found.samples],
                }  # fmt: skip
            self.found["models"][name] = known
            self.keep()
            del model
            gc.collect()
        return known

    def run(self, mixers: Sequence[str]) -> None:
        """All stages, then the table."""
        parent = self.parent()
        self.scores("parent", partial(load_model, str(parent)))
        for mixer in mixers:
            searched = self.searched(mixer)
            record = json.loads((searched / "search.json").read_text())
            layers = exchanged(record["path"])
            self.found["chosen"][mixer] = layers
            self.found["swaps"][mixer] = {"reason": record["reason"], "rises": rises(record["candidates"])}
            fit = self.place / f"twin-{mixer}" / "twin.json"
            if fit.exists():
                errors = json.loads(fit.read_text())
                self.found["fits"][mixer] = {name: list(errors[name].values()) for name in ("before", "after")}
            self.scores(f"{mixer}, chosen", partial(load_model, str(searched)))
            distilled = self.distilled(mixer, searched)
            self.scores(f"{mixer}, chosen and distilled", partial(load_model, str(distilled)))
            for how, others in placements(len(layers)).items():
                self.scores(f"{mixer}, {how}", partial(self._placed, mixer, others), writes=False)
        self.keep()
        show(self.found)

    def _placed(self, mixer: str, layers: Sequence[int]) -> tuple[Any, Any]:
        hybrid, tokenizer = load_model(str(self.place / f"hybrid-{mixer}"))
        return manticore.discretize(hybrid, [int(index in layers) for index in range(LAYERS)]), tokenizer


def exchanged(path: Sequence[int]) -> list[int]:
    """The layers of a path that are the twin's."""
    return [index for index, component in enumerate(path) if component]


def rises(candidates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Layers that are exchanged, joined by commas → how much that adds to the parent's held-out loss, in nats."""
    losses = {",".join(map(str, exchanged(each["path"]))): each["points"][-1]["loss"] for each in candidates}
    return {layers: round(loss - losses[""], 4) for layers, loss in losses.items() if layers}


def placements(count: int) -> dict[str, list[int]]:
    """As many layers as were chosen, where a user would put them without a search."""
    return {
        "spread evenly": [round((index + 0.5) * LAYERS / count - 0.5) for index in range(count)],
        "last layers": list(range(LAYERS - count, LAYERS)),
    }


def show(found: Mapping[str, Any]) -> None:
    """The table, and the bars in words."""
    parent = found["models"]["parent"]
    table = Table("model", "layers", "bits per byte", "over parent", "exact match", "recall", "cache", "tokens/s")
    for name, row in found["models"].items():
        mixer = name.split(",")[0]
        table.add_row(
            name,
            str(found["chosen"].get(mixer, "") if "chosen" in name else ""),
            f"{row['bits_per_byte']:.4f}",
            f"{row['bits_per_byte'] / parent['bits_per_byte'] - 1:+.1%}",
            f"{row['exact_match']:.3f}" if "exact_match" in row else "",
            ", ".join(f"{length}: {share:.2f}" for length, share in row.get("recall", {}).items()),
            f"{row['cache_bytes'] / parent['cache_bytes']:.0%}" if "cache_bytes" in row else "",
            ", ".join(map(str, row.get("tokens_per_s", {}).values())),
        )
    Console(width=200).print(table)
    for mixer, fit in found["fits"].items():
        before, after = (sorted(fit[name]) for name in ("before", "after"))
        medians = f"{statistics.median(before):.2f} before, {statistics.median(after):.2f} after the fit"
        print(f"{mixer}, relative error, median layer {medians}; {after[0]:.2f} to {after[-1]:.2f}")
    for mixer, swaps in found["swaps"].items():
        singles = [rise for layers, rise in swaps["rises"].items() if "," not in layers]
        print(f"{mixer}, single exchanges: {min(singles):+.4f} to {max(singles):+.4f} nats; {swaps['reason']}")
    for mixer, layers in found["chosen"].items():
        rows = [found["models"].get(f"{mixer}, chosen{after}", {}) for after in ("", " and distilled")]
        named = [(row, after) for row, after in zip(rows, ("untrained", "distilled")) if "recall" in row]
        for row, after in named:
            say_bars(f"{mixer}, {len(layers)} of {LAYERS} layers, {after}", row, parent)


def say_bars(name: str, row: Mapping[str, Any], parent: Mapping[str, Any]) -> None:
    """Which bars a model reaches."""
    length = max(row["recall"], key=int)
    reached = {
        "bits per byte": row["bits_per_byte"] <= BARS["bits_per_byte"] * parent["bits_per_byte"],
        "exact match": 100 * (parent["exact_match"] - row["exact_match"]) <= BARS["points"],
        f"recall at {length}": 100 * (parent["recall"][length] - row["recall"][length]) <= BARS["points"],
        "cache": row["cache_bytes"] <= SHARE * parent["cache_bytes"],
    }
    print(f"{name}: " + ", ".join(f"{what} {'reached' if well else 'MISSED'}" for what, well in reached.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=MIXERS)
    parser.add_argument("--work", type=Path, help="Where models are kept. Default: build/real, or build/real-quick.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = given.work or Path("build") / ("real-quick" if given.quick else "real")
    Bench(place, QUICK if given.quick else FULL, "real_quick" if given.quick else "real").run(given.mixers)


if __name__ == "__main__":
    main()
