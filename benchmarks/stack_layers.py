"""What every layer of a stack costs: parameters, state, FLOPs, and the time of a training pass on one CPU core.

Where transformers has the same primitive, its layer runs in turn with ours, of the same width, heads and state.
Run ``python benchmarks/stack_layers.py``; width and defaults are those of MAD, float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, Mamba2Config, MambaConfig, Qwen3NextConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import interleaved, paired_ratio, write_json
from manticore.registry import entries
from manticore.stacks.catalogue import measured
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM

WIDTH = 128
TOKENS_PER_PASS = 2048


def ours(name: str, tokens: int) -> Callable[[Tensor], Tensor]:
    """The layer with its norm and residual, as a stack runs it."""
    layer = StackForCausalLM(StackConfig(layers=[name], max_position_embeddings=tokens)).model.layers[0]
    positions = torch.arange(tokens)[None]
    return lambda x: layer(x, position_ids=positions, attention="sdpa")


def theirs(name: str, tokens: int) -> Callable[[Tensor], Tensor] | None:
    """transformers' layer, or None where it has none."""
    if name == "mh-attention":
        config: Any = LlamaConfig(
            hidden_size=WIDTH, num_attention_heads=16, attention_bias=True, attn_implementation="sdpa"
        )
        attention, rotary = LlamaAttention(config, 0), LlamaRotaryEmbedding(config)
        positions = torch.arange(tokens)[None]
        return lambda x: attention(x, position_embeddings=rotary(x, positions), attention_mask=None)[0]
    if name == "mamba":
        return MambaMixer(MambaConfig(hidden_size=WIDTH, state_size=4, time_step_rank=8), 0)
    if name == "mamba-2":
        return Mamba2Mixer(
            Mamba2Config(hidden_size=WIDTH, num_heads=8, head_dim=32, state_size=4, n_groups=1, chunk_size=64), 0
        )
    if name == "gated-delta-net":
        return Qwen3NextGatedDeltaNet(
            Qwen3NextConfig(
                hidden_size=WIDTH,
                linear_num_value_heads=8,
                linear_num_key_heads=8,
                linear_key_head_dim=16,
                linear_value_head_dim=16,
            ),
            0,
        )
    return None


def training_pass(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward of a layer, gradients of input and weights."""
    return lambda: run(x).square().sum().backward()


def measure(name: str, tokens: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a training pass over TOKENS_PER_PASS tokens, and the ratio to transformers' layer."""
    torch.manual_seed(0)
    x = torch.randn(max(1, TOKENS_PER_PASS // tokens), tokens, WIDTH, requires_grad=True)
    other = theirs(name, tokens)
    candidates = {"ours": training_pass(ours(name, tokens), x)}
    if other is not None:
        candidates["transformers"] = training_pass(other, x)
    seconds = interleaved(candidates, rounds=rounds)
    figures = {"milliseconds": 1000 * statistics.median(seconds["ours"])}
    if other is not None:
        figures["ours / transformers"] = paired_ratio(seconds["ours"], seconds["transformers"])
    return figures


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 1024])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    header = "".join(f" {f'ms at {tokens}':>12} {'÷ theirs':>9}" for tokens in arguments.tokens)
    print(f"{'layer':<28} {'parameters':>10} {'state at 128':>12} {'MFLOPs at 128':>13}{header}")
    rows = {}
    for name in entries("layer"):
        mixer = measured(name, WIDTH, 128)
        row: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in mixer.parameters()),
            "state": mixer.state_size(128),
            "flops": mixer.flops(128),
            **{str(tokens): measure(name, tokens, arguments.rounds) for tokens in arguments.tokens},
        }
        cells = ""
        for tokens in arguments.tokens:
            ratio = row[str(tokens)].get("ours / transformers")
            cells += f" {row[str(tokens)]['milliseconds']:>12.1f} {'' if ratio is None else f'{ratio:.2f}':>9}"
        state = "" if not row["state"] else f"{row['state']:,}"
        print(f"{name:<28} {row['parameters']:>10,} {state:>12} {row['flops'] / 1e6:>13.1f}{cells}", flush=True)
        rows[name] = row
    print(f"\n{write_json('stack_layers', {'width': WIDTH, 'tokens_per_pass': TOKENS_PER_PASS, 'layers': rows})}")


if __name__ == "__main__":
    main()
