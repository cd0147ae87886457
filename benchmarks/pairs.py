"""Pretrains the small GPT-Neo and Mamba that benchmarks combine, on the standard library's source, once per seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manticore.training.pretrain import pretrain

TOKENS = 128
"""Length of the packs they are trained on."""
TEXT_BYTES = 4_000_000
"""How much of the standard library's source is read."""


WIDTHS = {"gpt_neo": 64, "mamba": 80}


def pretrained(family: str, seed: int, *, steps: int) -> Path:
    """One of the two, four layers (cached)."""
    shared: dict[str, Any] = {"layers": 4, "batch_size": 16, "length": TOKENS, "max_bytes": TEXT_BYTES}
    return pretrain(family, width=WIDTHS[family], steps=steps, seed=seed, **shared)


def pretrained_pair(seed: int, *, steps: int) -> tuple[Path, Path]:
    """A GPT-Neo of width 64 and a Mamba of width 80, four layers each, with one shared tokenizer (cached)."""
    return pretrained("gpt_neo", seed, steps=steps), pretrained("mamba", seed, steps=steps)
