"""What a hybrid costs beyond its components: time and peak memory of forward + backward, ratios within one run.

    python benchmarks/overhead.py            # about three minutes on one core

The supernet is compared with the sum of its components' own training steps, the discretized hybrid with its kept
segments run alone. Bars: supernet <= 1.10, discretized <= 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import interleaved, paired_ratio, peak_bytes, write_json
from rich.console import Console
from rich.table import Table
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

import manticore
from manticore.kernels.mamba import fast_scan

VOCABULARY = 1024
BARS = {"supernet": 1.10, "discretized": 1.05}


def gpt_neo(layers: int) -> GPTNeoForCausalLM:
    """GPT-Neo of width 256 without dropout."""
    config = GPTNeoConfig(
        hidden_size=256, num_layers=layers, num_heads=8, intermediate_size=1024, vocab_size=VOCABULARY,
        attention_types=[[["global", "local"], layers // 2]], max_position_embeddings=1024,
        bos_token_id=0, eos_token_id=0,
        embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0,
    )  # fmt: skip
    return GPTNeoForCausalLM(config)


def mamba(layers: int) -> MambaForCausalLM:
    """Mamba of width 192."""
    config = MambaConfig(hidden_size=192, num_hidden_layers=layers, vocab_size=VOCABULARY, state_size=16)
    return MambaForCausalLM(config)


def step(model: PreTrainedModel, input_ids: torch.Tensor) -> Callable[[], None]:
    """One forward + backward of the language-model loss."""

    def run() -> None:
        model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def segments_alone(first: MambaForCausalLM, last: GPTNeoForCausalLM, input_ids: torch.Tensor) -> Callable[[], None]:
    """Embeddings and layers of one component, then layers, norm, head and loss of the other, not joined."""
    width = last.config.hidden_size
    features = torch.randn(*input_ids.shape, width)

    def run() -> None:
        hidden = first.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        hidden.backward(torch.ones_like(hidden))
        last(inputs_embeds=features.requires_grad_(), labels=input_ids, use_cache=False).loss.backward()
        features.grad = None
        first.zero_grad(set_to_none=True)
        last.zero_grad(set_to_none=True)

    return run


def measure(batch: int, tokens: int, layers: tuple[int, int], num_blocks: int, rounds: int) -> dict[str, Any]:
    """All figures for one shape."""
    torch.manual_seed(0)
    input_ids = torch.randint(0, VOCABULARY, (batch, tokens))
    parents = [gpt_neo(layers[0]), mamba(layers[1])]
    hybrids = {
        mixing: manticore.combine(parents, num_blocks=num_blocks, mixing=mixing).train()
        for mixing in ("translated", "routed", "gated")
    }
    # routed starts at R = I, where no projector runs: equal weights are its full cost
    hybrids["routed"].set_mixture_weights([[0.5, 0.5]] * num_blocks)
    path = [1] * (num_blocks // 2) + [0] * (num_blocks - num_blocks // 2)
    discretized = manticore.discretize(hybrids["translated"], path)
    alone_first, alone_last = mamba(layers[1] // 2), gpt_neo(layers[0] - layers[0] // 2)

    candidates = {
        "gpt_neo": step(parents[0].train(), input_ids),
        "mamba": step(parents[1].train(), input_ids),
        **{f"supernet {mixing}": step(hybrid, input_ids) for mixing, hybrid in hybrids.items()},
        "discretized": step(discretized, input_ids),
        "kept segments alone": segments_alone(alone_first, alone_last, input_ids),
    }
    models = [*parents, *hybrids.values(), discretized, alone_first, alone_last]
    scans = [fast_scan(model) for model in models]
    for scan in scans:
        scan.__enter__()
    try:
        seconds = interleaved(candidates, rounds=rounds, warmup=2)
        memory = {name: statistics.median(peak_bytes(run) for _ in range(3)) for name, run in candidates.items()}
    finally:
        for scan in scans:
            scan.__exit__(None, None, None)
    together = [a + b for a, b in zip(seconds["gpt_neo"], seconds["mamba"])]
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {
            "model": name,
            "milliseconds": 1e3 * statistics.median(values),
            "peak_mib": memory[name] / 2**20,
        }
        if name.startswith("supernet"):
            row["ratio"], row["bar"] = paired_ratio(values, together), BARS["supernet"]
        if name == "discretized":
            row["ratio"], row["bar"] = paired_ratio(values, seconds["kept segments alone"]), BARS["discretized"]
        rows.append(row)
    return {"batch": batch, "tokens": tokens, "layers": list(layers), "num_blocks": num_blocks, "rows": rows}


def main() -> int:
    """Print the tables, write the JSON, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shapes = [
        measure(batch, tokens, (8, 16), num_blocks, arguments.rounds)
        for batch, tokens, num_blocks in ((4, 128, 4), (4, 128, 2), (2, 512, 4))
    ]
    console = Console()
    met = True
    for shape in shapes:
        title = f"batch {shape['batch']}, {shape['tokens']} tokens, {shape['num_blocks']} blocks: forward + backward"
        table = Table("model", "CPU ms", "peak MiB", "ratio", "bar", title=title)
        for row in shape["rows"]:
            ratio = f"{row['ratio']:.3f}" if "ratio" in row else ""
            table.add_row(
                row["model"], f"{row['milliseconds']:.1f}", f"{row['peak_mib']:.0f}", ratio, str(row.get("bar", ""))
            )
            met = met and row.get("ratio", 0) <= row.get("bar", 1)
        console.print(table)
    console.print(f"written to {write_json('overhead', {'shapes': shapes})}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
