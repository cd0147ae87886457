"""MAD compression by the four-layer Transformer: test perplexity after 30 epochs on 1,600 examples, three seeds.

    python benchmarks/mad_compression.py -o mad-compression             # goes on where it was ended
    python benchmarks/mad_compression.py -o longer --seq-len 32         # the length of MAD's baseline

Vocabulary 16, 16 tokens, batches of 128; constant learning rate of 1e-3, no decay, as in the public code. A seed's run
is written when it is done; the table and the JSON follow when all are. One to two CPU minutes a seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import write_json

from manticore.experiments.mad.models import Candidate
from manticore.experiments.mad.training import train_runs
from manticore.tasks.mad.examples import generate
from manticore.tasks.mad.protocol import PROTOCOLS, Hyper
from manticore.writing import write_json as write_whole


def run(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One seed's training; perplexities of every epoch."""
    sizes = {"seq_len": options.seq_len, "num_train_examples": options.examples}
    model = Candidate("transformer").build(vocab_size=16, positions=options.seq_len, seed=seed, backbone="autoencoder")
    protocol = replace(PROTOCOLS["released"], epochs=options.epochs, batch_size=options.batch_size)
    start = time.process_time()
    (outcome,) = train_runs(
        model, generate("compression", **sizes), [Hyper(options.lr, 0.0)], protocol, seed=seed, watch=_say
    )
    return {
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "best_epoch": outcome.best_epoch,
        "perplexity": outcome.test["mad_perplexity"],
        "accuracy": outcome.test["accuracy"],
        "last_train_loss": outcome.history[-1]["train_loss"],
        "perplexities": [round(row["mad_perplexity"], 3) for row in outcome.history],
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def _say(done: int, epochs: int, row: Any) -> None:
    print(f"  epoch {done} of {epochs}, training loss {row['loss']:.3f}", flush=True)


def main() -> None:
    """Run the seeds that are missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", default="mad-compression")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=1600)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seq-len", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = {name: value for name, value in vars(options).items() if name not in ("out", "seeds")}
    rows = []
    for seed in range(options.seeds):
        file = Path(options.out) / f"seed-{seed}.json"
        if not file.exists() or json.loads(file.read_text())["asked"] != asked:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, {"asked": asked, **run(seed, options)})
        rows.append(json.loads(file.read_text()))
        print(
            f"seed {seed}: perplexity {rows[-1]['perplexity']:.2f} at epoch {rows[-1]['best_epoch']}, "
            f"{rows[-1]['parameters']:,} parameters",
            flush=True,
        )
    found = [row["perplexity"] for row in rows]
    spread = statistics.stdev(found) if len(found) > 1 else float("nan")
    print(f"perplexity {statistics.fmean(found):.2f} ± {spread:.2f} over {len(found)} seeds")
    print(write_json("mad_compression", {**asked, "mean": statistics.fmean(found), "spread": spread, "runs": rows}))


if __name__ == "__main__":
    main()
