"""Configurations of well-known checkpoints, so that a plan needs no download. Nothing is ever loaded by them.

Facts are those of the public ``config.json`` files; ``parameters`` is the published total, which a test compares
with what the configuration lays out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """One checkpoint."""

    family: str
    tokenizer: str
    """Checkpoints with the same word here share a tokenizer."""
    parameters: int
    fields: dict[str, Any]


def _gpt2(layers: int, width: int, heads: int, parameters: int) -> Known:
    fields = {"n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": 50257, "n_positions": 1024}
    return Known("gpt2", "gpt2", parameters, fields)


def _gpt_neo(layers: int, width: int, heads: int, parameters: int) -> Known:
    fields = {
        "num_layers": layers, "hidden_size": width, "num_heads": heads, "vocab_size": 50257,
        "attention_types": [[["global", "local"], layers // 2]], "max_position_embeddings": 2048, "window_size": 256,
    }  # fmt: skip
    return Known("gpt_neo", "gpt2", parameters, fields)


def _pythia(layers: int, width: int, heads: int, rows: int, parameters: int) -> Known:
    fields = {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": 4 * width, "vocab_size": rows, "max_position_embeddings": 2048,
        "rotary_pct": 0.25, "tie_word_embeddings": False,
    }  # fmt: skip
    return Known("gpt_neox", "gpt-neox", parameters, fields)


def _mamba(layers: int, width: int, parameters: int) -> Known:
    fields = {
        "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 2 * width, "vocab_size": 50280,
        "state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": -(-width // 16),
    }  # fmt: skip
    return Known("mamba", "gpt-neox", parameters, fields)


KNOWN: dict[str, Known] = {
    "gpt2": _gpt2(12, 768, 12, 124_439_808),
    "gpt2-medium": _gpt2(24, 1024, 16, 354_823_168),
    "gpt2-large": _gpt2(36, 1280, 20, 774_030_080),
    "gpt2-xl": _gpt2(48, 1600, 25, 1_557_611_200),
    "gpt-neo-125m": _gpt_neo(12, 768, 12, 125_198_592),
    "gpt-neo-1.3b": _gpt_neo(24, 2048, 16, 1_315_575_808),
    "gpt-neo-2.7b": _gpt_neo(32, 2560, 20, 2_651_307_520),
    "pythia-70m": _pythia(6, 512, 8, 50304, 70_426_624),
    "pythia-160m": _pythia(12, 768, 12, 50304, 162_322_944),
    "pythia-410m": _pythia(24, 1024, 16, 50304, 405_334_016),
    "pythia-1b": _pythia(16, 2048, 8, 50304, 1_011_781_632),
    "pythia-1.4b": _pythia(24, 2048, 16, 50304, 1_414_647_808),
    "pythia-2.8b": _pythia(32, 2560, 32, 50304, 2_775_208_960),
    "pythia-6.9b": _pythia(32, 4096, 32, 50432, 6_857_302_016),
    "pythia-12b": _pythia(36, 5120, 40, 50688, 11_846_072_320),
    "mamba-130m-hf": _mamba(24, 768, 129_135_360),
    "mamba-370m-hf": _mamba(48, 1024, 371_516_416),
    "mamba-790m-hf": _mamba(48, 1536, 793_204_224),
    "mamba-1.4b-hf": _mamba(48, 2048, 1_372_178_432),
    "mamba-2.8b-hf": _mamba(64, 2560, 2_768_345_600),
}


def known(source: str) -> tuple[str, Known] | None:
    """The checkpoint that a name or hub id means, and its name here; case and owner do not matter."""
    name = source.rpartition("/")[2].lower()
    return (name, KNOWN[name]) if name in KNOWN else None
