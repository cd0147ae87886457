"""What a hybrid's output costs: a training step, reading a prompt, writing a token, and memory, ratios within one run.

    python benchmarks/outputs.py             # about two minutes on one core

Two parents side by side (routed, R = I). Bar: the gate costs at most 2 % of a step of the same hybrid without it
(output probabilities).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import interleaved, paired_ratio, peak_bytes, write_json
from overhead import VOCABULARY, gpt_neo, mamba, step
from rich.console import Console
from rich.table import Table

import manticore
from manticore.components.cache_argument import cache_in
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.kernels.mamba import fast_scan

OUTPUTS = ("logits", "probabilities", "bayes", "gate")
BAR = 1.02
BATCH, TOKENS, PROMPT, WRITTEN = 16, 128, 512, 16


def prompt(hybrid: ManticoreForCausalLM, input_ids: torch.Tensor) -> Callable[[], None]:
    """Reading a prompt as generation does: a cache, and the last position's logits alone."""

    @torch.no_grad()
    def run() -> None:
        hybrid(input_ids=input_ids, use_cache=True, logits_to_keep=1)

    return run


def writing(hybrid: ManticoreForCausalLM, input_ids: torch.Tensor) -> Callable[[], None]:
    """Some tokens after a prompt, one at a time."""
    with torch.no_grad():
        given = cache_in(hybrid(input_ids=input_ids, use_cache=True, logits_to_keep=1))

    @torch.no_grad()
    def run() -> None:
        for position in range(WRITTEN):
            hybrid(input_ids=input_ids[:, position : position + 1], past_key_values=given, logits_to_keep=1)

    return run


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows of the table."""
    torch.manual_seed(0)
    parents = [gpt_neo(4), mamba(8)]
    hybrids = {
        output: manticore.combine(parents, num_blocks=1, mixing="routed", output=output, check=False)
        for output in OUTPUTS
    }
    ids, long = (torch.randint(0, VOCABULARY, shape) for shape in ((BATCH, TOKENS), (2, PROMPT)))
    scans = [fast_scan(hybrid) for hybrid in hybrids.values()]
    for scan in scans:
        scan.__enter__()
    rows = []
    try:
        for what, make in (("training step", step), ("prompt", prompt), (f"{WRITTEN} tokens", writing)):
            runs = {
                output: make(hybrid.train(what == "training step"), ids if what == "training step" else long)
                for output, hybrid in hybrids.items()
            }
            seconds = interleaved(runs, rounds=rounds, warmup=2)
            for output, run in runs.items():
                rows.append(
                    {
                        "what": what,
                        "output": output,
                        "milliseconds": 1e3 * statistics.median(seconds[output]),
                        "against_logits": paired_ratio(seconds[output], seconds["logits"]),
                        "against_probabilities": paired_ratio(seconds[output], seconds["probabilities"]),
                        "peak_mib": statistics.median(peak_bytes(run) for _ in range(3)) / 2**20,
                    }
                )
    finally:
        for scan in scans:
            scan.__exit__(None, None, None)
    return rows


def main() -> int:
    """Print the table, write the JSON, and fail where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.rounds)
    console = Console()
    table = Table("what", "output", "CPU ms", "÷ logits", "÷ probabilities", "peak MiB")
    for row in rows:
        table.add_row(
            row["what"],
            row["output"],
            f"{row['milliseconds']:.1f}",
            f"{row['against_logits']:.3f}",
            f"{row['against_probabilities']:.3f}",
            f"{row['peak_mib']:.0f}",
        )
    console.print(table)
    shape = {"batch": BATCH, "tokens": TOKENS, "prompt": PROMPT, "rounds": arguments.rounds}
    console.print(f"written to {write_json('outputs', {**shape, 'rows': rows})}")
    gate = next(r for r in rows if r["what"] == "training step" and r["output"] == "gate")
    return 0 if gate["against_probabilities"] <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
