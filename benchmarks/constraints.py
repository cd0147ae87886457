"""What a search predicts that a path's decoding takes, against its discretized hybrid, timed.

    python benchmarks/constraints.py

A supernet of a GPT-Neo of four and a Mamba of eight layers, width 256, in two blocks. Every round measures the table
once, by the pieces of the supernet, and then decodes a token with each of three discretized paths; all with the same
clock: CPU time of one thread. A path's figure is the median of the rounds' ratios of prediction to measurement. Bars:
the median predictions stand in the order of the median measurements, and every ratio is within 20 % of 1. Counts have
no tolerance, and are compared in ``tests/search/test_cost_table.py``.
"""

from __future__ import annotations

import statistics
import time

import torch
from measure import write_json
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MambaConfig, MambaForCausalLM

import manticore
from manticore.components.cache_argument import CACHE_ARGUMENT
from manticore.option_types import Workload
from manticore.search.cost_table import cost_table
from manticore.search.timing import Clock

WIDTH, LAYERS, MAMBA_LAYERS, VOCABULARY, TOKENS = 256, 4, 8, 1024, 128
PATHS = {"GPT → GPT": (0, 0), "GPT → Mamba": (0, 1), "Mamba → Mamba": (1, 1)}
ROUNDS, STEPS, WARM = 20, 3, 2
WITHIN = 0.2


def parents() -> list[torch.nn.Module]:
    """With fresh weights: what they hold does not matter to the clock."""
    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "bos_token_id": 0, "eos_token_id": 0}
    gpt = GPTNeoConfig(
        **common, num_layers=LAYERS, num_heads=4, attention_types=[[["global"], LAYERS]], max_position_embeddings=TOKENS
    )
    mamba = MambaConfig(**common, num_hidden_layers=MAMBA_LAYERS, pad_token_id=0)
    return [GPTNeoForCausalLM(gpt), MambaForCausalLM(mamba)]


@torch.no_grad()
def milliseconds(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Of one of the last tokens of a sequence, the median of a few."""
    cache = model.new_cache()
    model(input_ids=ids[:, : -(STEPS + WARM)], use_cache=True, logits_to_keep=1, **{CACHE_ARGUMENT: cache})
    found = []
    for step in range(STEPS + WARM):
        begun = time.process_time()
        model(input_ids=ids[:, -1:], use_cache=True, logits_to_keep=1, **{CACHE_ARGUMENT: cache})
        if step >= WARM:
            found.append(1e3 * (time.process_time() - begun))
    return statistics.median(found)


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    hybrid = manticore.combine(parents(), num_blocks=2, check=False).eval()
    small = {name: manticore.discretize(hybrid, path).eval() for name, path in PATHS.items()}
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    workload = Workload(TOKENS, 1)
    predicted: dict[str, list[float]] = {name: [] for name in PATHS}
    measured: dict[str, list[float]] = {name: [] for name in PATHS}
    for _ in range(ROUNDS):
        with torch.no_grad():
            table = Clock(hybrid, workload, time.process_time).decode(STEPS)
        for name, path in PATHS.items():
            predicted[name].append(table.of(path))
            measured[name].append(milliseconds(small[name], ids))
    counts = cost_table(hybrid, str(workload))
    rows = {
        name: {
            "path": list(path),
            "predicted_ms": statistics.median(predicted[name]),
            "measured_ms": statistics.median(measured[name]),
            "ratio": statistics.median(p / m for p, m in zip(predicted[name], measured[name])),
            "ratios": [p / m for p, m in zip(predicted[name], measured[name])],
            "counted": counts.of(path),
        }
        for name, path in PATHS.items()
    }
    orders = [sorted(rows, key=lambda name: rows[name][kind]) for kind in ("predicted_ms", "measured_ms")]
    print(f"{'path':<16}{'predicted ms':>14}{'measured ms':>14}{'ratio':>8}{'cache bytes':>14}{'parameters':>12}")
    for name, row in rows.items():
        counted = row["counted"]
        print(
            f"{name:<16}{row['predicted_ms']:>14.2f}{row['measured_ms']:>14.2f}{row['ratio']:>8.2f}"
            f"{counted['cache_bytes']:>14,.0f}{counted['parameters']:>12,.0f}"
        )
    close = all(abs(row["ratio"] - 1) <= WITHIN for row in rows.values())
    print(f"in the measured order: {orders[0] == orders[1]}; all within {WITHIN:.0%}: {close}")
    write_json(
        "constraints",
        {"workload": str(workload), "rounds": ROUNDS, "paths": rows, "ordered": orders[0] == orders[1],
         "within_20_percent": close},
    )  # fmt: skip


if __name__ == "__main__":
    main()
