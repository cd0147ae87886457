"""Decoding with hybrids: the cache changes nothing, and how fast it is beside the parents, ratios within one run.

    python benchmarks/generation.py                # both sizes, about fifteen minutes of one core
    python benchmarks/generation.py --size base    # one size; the other's figures stay as they were written
    python benchmarks/generation.py --quick        # two small pairs, few rounds; writes no results

Random models. Small: six layers, widths 384 (the first of a pair) and 320, where a step takes a few milliseconds. Base:
width 768, 12 layers, 24 of the recurrent families, 4096 tokens, about the inner size of GPT-Neo 125M and Mamba 130M.
Blocks: two. Per pair, for the supernet at equal weights and for the discretized hybrid that keeps half of each parent:

- greedy decoding and three beams write the same tokens with and without a cache, and left-padded as unpadded (small);
- the largest difference of any logit between decoding token by token and one pass, as a share of the largest logit;
- speed of 24 new tokens (base: 12): CPU time of the parents (their mean for the discretized hybrid, which runs half of
  each; their sum for the supernet, which runs both) ÷ the hybrid's own. 1.0 is no overhead; bars 0.95 and 0.95;
- the same speed of the unchanged parents when they decode in turn, token by token, instead of one after the other: what
  the processor's caches alone cost whoever runs both;
- where a hybrid's excess goes, as shares of its time (see generation_costs.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from generation_costs import KINDS, decode, milliseconds
from measure import RESULTS, interleaved, paired_ratio, write_json
from rich.console import Console
from rich.table import Column, Table
from tiny_families import tiny_model
from torch import Tensor

import manticore
from manticore.hybrid.modeling import ManticoreForCausalLM

BARS = {"supernet": 0.95, "discretized": 0.95}
TOLERANCE = 1e-4
RECURRENT = ("mamba", "falcon_mamba", "mamba2")


@dataclass(frozen=True)
class Size:
    """How large the parents are, and how often they are timed."""

    widths: tuple[int, int]
    layers: int
    recurrent_layers: int
    heads: int
    vocabulary: int
    tokens: int
    rounds: int


SIZES = {
    "small": Size((384, 320), layers=6, recurrent_layers=6, heads=8, vocabulary=1024, tokens=24, rounds=5),
    "base": Size((768, 768), layers=12, recurrent_layers=24, heads=12, vocabulary=4096, tokens=12, rounds=3),
}


def _shape(family: str, width: int, size: Size) -> dict[str, Any]:
    """What a family's tiny configuration changes for a model of this size."""
    depth = size.recurrent_layers if family in RECURRENT else size.layers
    inner = {"hidden_size": width, "intermediate_size": 3 * width}
    attention = {"num_hidden_layers": depth, "num_attention_heads": size.heads, "max_position_embeddings": 256}
    grouped = {**attention, **inner, "num_key_value_heads": size.heads // 2}
    # random layers that are far from the identity double rounding errors with every layer
    state = {"hidden_size": width, "num_hidden_layers": depth, "initializer_range": 0.02}
    return {
        "gpt_neo": {
            **inner, "num_layers": depth, "num_heads": size.heads, "window_size": 64, "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], depth // 2]],
        },
        "gpt2": {"n_embd": width, "n_layer": depth, "n_head": size.heads, "n_positions": 256},
        "gpt_neox": {**attention, **inner},
        "opt": {**attention, "hidden_size": width, "ffn_dim": 3 * width, "word_embed_proj_dim": width},
        "llama": grouped,
        "qwen2": {**grouped, "sliding_window": 64, "max_window_layers": depth // 2},
        "mistral": {**grouped, "sliding_window": 64},
        "gemma2": {**grouped, "head_dim": 48, "sliding_window": 64},
        "mamba": {**state, "state_size": 16},
        "falcon_mamba": {**state, "state_size": 16},
        "mamba2": {**state, "num_heads": width // 16, "head_dim": 32, "state_size": 64},
        "lfm2": {**grouped, "layer_types": ["conv", "full_attention"] * (depth // 2)},
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
    ids = torch.randint(3, 1024, (2, 12), generator=torch.Generator().manual_seed(0))
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


def pair_row(names: tuple[str, str], size: Size, rounds: int, *, compare: bool) -> dict[str, Any]:
    """All figures of one pair; whether tokens are the same only if ``compare``."""
    parents = [
        tiny_model(name, seed=k, vocab_size=size.vocabulary, **_shape(name, width, size))
        for k, (name, width) in enumerate(zip(names, size.widths))
    ]
    supernet = manticore.combine(parents, num_blocks=2)
    hybrids = {"supernet": supernet, "discretized": manticore.discretize(supernet, [1, 0])}
    same = {name: equality(hybrid) for name, hybrid in hybrids.items()} if compare else {}
    ids = prompts()[0][:1]
    given: dict[str, Any] = {"max_new_tokens": size.tokens, "min_new_tokens": size.tokens, "do_sample": False}
    models = {"first": parents[0], "second": parents[1], **hybrids}
    candidates: dict[str, Any] = {name: (lambda m=model: m.generate(ids, **given)) for name, model in models.items()}
    for name, in_turn in (("one after the other", False), ("in turn", True)):
        candidates[name] = lambda in_turn=in_turn: decode(parents, ids, size.tokens // 2, in_turn=in_turn)
    seconds = interleaved(candidates, rounds=rounds, warmup=1)
    both = [a + b for a, b in zip(seconds["first"], seconds["second"])]
    costs = {name: milliseconds(model, ids, given, (rounds + 1) // 2) for name, model in models.items()}
    return {
        "pair": "+".join(names),
        "equality": same,
        "milliseconds_per_token": {name: 1e3 * sorted(seconds[name])[rounds // 2] / size.tokens for name in models},
        "speed": {
            "supernet": paired_ratio(both, seconds["supernet"]),
            "discretized": paired_ratio([value / 2 for value in both], seconds["discretized"]),
        },
        "parents_in_turn": paired_ratio(seconds["one after the other"], seconds["in turn"]),
        "milliseconds_per_kind": costs,
        "excess": {"supernet": _excess(costs, "supernet", 1.0), "discretized": _excess(costs, "discretized", 0.5)},
    }


def _excess(costs: dict[str, dict[str, float]], hybrid: str, share: float) -> dict[str, float]:
    """Per kind what a hybrid takes beyond ``share`` of both parents, as a share of the hybrid's time."""
    whole = sum(costs[hybrid].values())
    return {
        kind: (costs[hybrid][kind] - share * (costs["first"][kind] + costs["second"][kind])) / whole for kind in KINDS
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    found = []
    for hybrid, figures in row["equality"].items():
        found += [f"{row['pair']}, {hybrid}, {name}: other tokens" for name, same in figures.items() if same is False]
        if not figures["logits"] <= TOLERANCE:
            found.append(f"{row['pair']}, {hybrid}: logits differ by {figures['logits']:.2g} of the largest")
    for hybrid, ratio in row["speed"].items():
        if not ratio >= BARS[hybrid]:
            excess = ", ".join(f"{kind} {part:+.1%}" for kind, part in row["excess"][hybrid].items())
            found.append(f"{row['pair']}, {hybrid}: speed {ratio:.3f} (bar {BARS[hybrid]}; excess: {excess})")
    return found


def speed_table(name: str, rows: list[dict[str, Any]]) -> Table:
    """Tokens, speeds and costs of every pair of one size."""
    title = (
        f"Cached decoding, {name}, one thread: ms per token, speed (bars 0.95 and 0.95), speed of the parents in turn"
    )
    table = Table(Column("pair", no_wrap=True), title=title)
    for heading in ("same", "logits", "parents", "supernet", "discr.", "speed: supernet", "discr.", "in turn"):
        table.add_column(heading)
    for row in rows:
        same = [value for figures in row["equality"].values() for value in figures.values() if isinstance(value, bool)]
        differ = [figures["logits"] for figures in row["equality"].values()]
        milliseconds_ = row["milliseconds_per_token"]
        table.add_row(
            row["pair"],
            f"{sum(same)} of {len(same)}" if same else "",
            f"{max(differ):.1e}" if differ else "",
            f"{milliseconds_['first']:.1f}, {milliseconds_['second']:.1f}",
            f"{milliseconds_['supernet']:.1f}",
            f"{milliseconds_['discretized']:.1f}",
            f"{row['speed']['supernet']:.3f}",
            f"{row['speed']['discretized']:.3f}",
            f"{row['parents_in_turn']:.3f}",
        )
    return table


def main() -> int:
    """Print the tables, write the JSON, and fail where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), help="one size only")
    parser.add_argument("--quick", action="store_true", help="two small pairs, three rounds; writes no results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers.logging.set_verbosity_error()
    # the table needs its columns whole, in a file too
    console = Console(width=max(120, Console().width))
    sizes: dict[str, Any] = {}
    missed = []
    for name in ("small",) if arguments.quick else [arguments.size] if arguments.size else SIZES:
        size = SIZES[name]
        rounds = 3 if arguments.quick else size.rounds
        pairs = PAIRS[:2] if arguments.quick else PAIRS
        rows = [pair_row(names, size, rounds, compare=name == "small") for names in pairs]
        sizes[name] = {"rounds": rounds, "pairs": rows}
        console.print(speed_table(name, rows))
        missed += [f"{name}, {fault}" for row in rows for fault in faults(row)]
    for fault in missed:
        console.print(f"[red]{fault}[/red]")
    if not arguments.quick:
        written = RESULTS / "generation.json"
        before = json.loads(written.read_text()).get("sizes", {}) if written.exists() else {}
        console.print(f"written to {write_json('generation', {'bars': BARS, 'sizes': before | sizes})}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
