"""Pretrains the small GPT-Neo and Mamba that benchmarks combine, on the standard library's source, once per seed."""

from __future__ import annotations

from pathlib import Path

from manticore.training.pretrain import pretrain

TOKENS = 128
"""Length of the packs they are trained on."""


def pretrained_pair(seed: int, *, steps: int) -> tuple[Path, Path]:
    """A GPT-Neo of width 128 and a Mamba of width 160, four layers each, with one shared tokenizer (cached)."""
    shared = {"corpus": "stdlib", "steps": steps, "batch_size": 16, "length": TOKENS, "seed": seed, "lr": 2e-3}
    gpt = pretrain(
        "gpt_neo",
        {
            "hidden_size": 128,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 64,
            "max_position_embeddings": 256,
        },
        vocab_size=1024,
        **shared,
    )
    mamba = pretrain("mamba", {"hidden_size": 160, "num_hidden_layers": 4, "state_size": 16}, tokenizer=gpt, **shared)
    return gpt, mamba
