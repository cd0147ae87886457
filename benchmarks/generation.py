"""Decoding with hybrids: the cache changes nothing, and how fast it is beside the parents, ratios within one run.

    python benchmarks/generation.py            # about five minutes of one core
    python benchmarks/generation.py --quick    # two pairs, few rounds; writes no results

Random models of six layers, widths 384 (the first of a pair) and 320, eight new tokens for the comparisons and 24 for
the timing. Per pair, for the supernet at equal weights and for the discretized hybrid that keeps half of each parent:

- greedy decoding and three beams write the same tokens with and without a cache, and left-padded as unpadded;
- the largest difference of any logit between decoding token by token and one pass, as a share of the largest logit;
- speed: CPU time per token of the parents (their mean for the discretized hybrid, which runs half of each; their sum
  for the supernet, which runs both) ÷ the hybrid's own. 1.0 is no overhead; bars 0.95 and 0.95.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch
import transformers
from measure import interleaved, paired_ratio, write_json
from rich.console import Console
from rich.table import Table
from tiny_families import tiny_model
from torch import Tensor

import manticore
from manticore.hybrid.modeling import ManticoreForCausalLM

VOCABULARY = 1024
BARS = {"supernet": 0.95, "discretized": 0.95}
TOLERANCE = 1e-4
FIRST, SECOND = 384, 320
_ATTENTION = {"num_hidden_layers": 6, "num_attention_heads": 8, "max_position_embeddings": 256}
_LLAMA = {**_ATTENTION, "num_key_value_heads": 4}


def _wide(family: str, width: int) -> dict[str, Any]:
    """What a family's tiny configuration changes for a model of six layers and this width."""
    inner = {"hidden_size": width, "intermediate_size": 3 * width}
    return {
        "gpt_neo": {
            **inner, "num_layers": 6, "num_heads": 8, "attention_types": [[["global", "local"], 3]], "window_size": 64,
            "max_position_embeddings": 256,
        },
        "gpt2": {"n_embd": width, "n_layer": 6, "n_head": 8, "n_positions": 256},
        "gpt_neox": {**_ATTENTION, **inner},
        "opt": {
            **_ATTENTION, "hidden_size": width, "ffn_dim": 3 * width, "word_embed_proj_dim": width,
        },
        "llama": {**_LLAMA, **inner},
        "qwen2": {**_LLAMA, **inner, "sliding_window": 64, "max_window_layers": 3},
        "mistral": {**_LLAMA, **inner, "sliding_window": 64},
        "gemma2": {**_LLAMA, **inner, "head_dim": 48, "sliding_window": 64},
        "mamba": {"hidden_size": width, "num_hidden_layers": 6, "state_size": 16},
        "falcon_mamba": {"hidden_size": width, "num_hidden_layers": 6, "state_size": 16},
        "mamba2": {
            "hidden_size": width, "num_hidden_layers": 6, "num_heads": width // 16, "head_dim": 32, "state_size": 64,
        },
        "lfm2": {**_LLAMA, **inner, "layer_types": ["conv", "full_attention"] * 3},
    }[family]  # fmt: skip


PAIRS = (
    ("gpt_neo", "mamba"),
    ("gpt_neox", "mamba2"),
    ("llama", "mamba2"),
    ("llama", "falcon_mamba"),
    ("gpt2", "mamba"),
    ("opt", "lfm2"),
    ("mistral", "qwen2"),
    ("gemma2", "mamba2"),
)


def prompts() -> tuple[Tensor, Tensor, Tensor]:
    """Two prompts ``[2, 12]``, the same with five more tokens of padding on the left ``[2, 17]``, and their mask."""
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], dim=1)
    return ids, padded, (padded != 0).long()


@torch.no_grad()
def equality(hybrid: ManticoreForCausalLM) -> dict[str, Any]:
    """What the cache and padding change: whether tokens are the same, and the largest difference of a logit."""
    ids, padded, mask = prompts()
    found: dict[str, Any] = {}
    for name, beams in (("greedy", 1), ("beams", 3)):
        given: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
        cached = hybrid.generate(ids, **given)
        found[name] = torch.equal(cached, hybrid.generate(ids, use_cache=False, **given))
        alike = hybrid.generate(padded, attention_mask=mask, **given)[:, 5:]
        found[f"{name}, left-padded"] = torch.equal(cached, alike)
    whole = hybrid(ids).logits
    cache = hybrid.new_cache()
    steps = [
        hybrid(ids[:, t : t + 1], position_ids=torch.tensor([[t]]), past_key_values=cache).logits
        for t in range(ids.shape[1])
    ]
    found["logits"] = float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max())
    return found


def pair_row(names: tuple[str, str], rounds: int) -> dict[str, Any]:
    """All figures of one pair."""
    parents = [
        tiny_model(name, seed=k, vocab_size=VOCABULARY, **_wide(name, width))
        for k, (name, width) in enumerate(zip(names, (FIRST, SECOND)))
    ]
    supernet = manticore.combine(parents, num_blocks=2)
    hybrids = {"supernet": supernet, "discretized": manticore.discretize(supernet, [1, 0])}
    same = {name: equality(hybrid) for name, hybrid in hybrids.items()}
    ids = prompts()[0][:1]
    given: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    models = {"first": parents[0], "second": parents[1], **hybrids}
    candidates = {name: (lambda model=model: model.generate(ids, **given)) for name, model in models.items()}
    seconds = interleaved(candidates, rounds=rounds, warmup=1)
    both = [a + b for a, b in zip(seconds["first"], seconds["second"])]
    return {
        "pair": "+".join(names),
        "equality": same,
        "milliseconds_per_token": {name: 1e3 * sorted(values)[rounds // 2] / 24 for name, values in seconds.items()},
        "speed": {
            "supernet": paired_ratio(both, seconds["supernet"]),
            "discretized": paired_ratio([value / 2 for value in both], seconds["discretized"]),
        },
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    found = []
    for hybrid, figures in row["equality"].items():
        found += [f"{row['pair']}, {hybrid}, {name}: other tokens" for name, same in figures.items() if same is False]
        if not figures["logits"] <= TOLERANCE:
            found.append(f"{row['pair']}, {hybrid}: logits differ by {figures['logits']:.2g} of the largest")
    found += [
        f"{row['pair']}, {hybrid}: speed {ratio:.3f} (bar {BARS[hybrid]})"
        for hybrid, ratio in row["speed"].items()
        if not ratio >= BARS[hybrid]
    ]
    return found


def main() -> int:
    """Print the table, write the JSON, and fail where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="two pairs, three rounds; writes no results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers.logging.set_verbosity_error()
    rounds = 3 if arguments.quick else arguments.rounds
    rows = [pair_row(names, rounds) for names in (PAIRS[:2] if arguments.quick else PAIRS)]
    table = Table(
        "pair", "tokens same", "logits differ", "ms per token: parents", "supernet", "discretized", "speed: supernet",
        "discretized", title="Cached decoding, one thread (bars 0.95 and 0.95)",
    )  # fmt: skip
    for row in rows:
        same = [value for figures in row["equality"].values() for value in figures.values() if isinstance(value, bool)]
        milliseconds = row["milliseconds_per_token"]
        table.add_row(
            row["pair"],
            f"{sum(same)} of {len(same)}",
            f"{max(figures['logits'] for figures in row['equality'].values()):.1e}",
            f"{milliseconds['first']:.1f}, {milliseconds['second']:.1f}",
            f"{milliseconds['supernet']:.1f}",
            f"{milliseconds['discretized']:.1f}",
            f"{row['speed']['supernet']:.3f}",
            f"{row['speed']['discretized']:.3f}",
        )
    console = Console()
    console.print(table)
    missed = [fault for row in rows for fault in faults(row)]
    for fault in missed:
        console.print(f"[red]{fault}[/red]")
    if not arguments.quick:
        console.print(f"written to {write_json('generation', {'bars': BARS, 'rounds': rounds, 'pairs': rows})}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
