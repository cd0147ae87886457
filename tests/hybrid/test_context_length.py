"""The length that a hybrid's configuration names to tools: the smallest of the components that it has kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import manticore
from benchmarks.tiny_families import tiny_config, tiny_model
from manticore.components.positions import context_length

LENGTHS: dict[str, tuple[dict[str, Any], int | None]] = {
    "llama": ({"max_position_embeddings": 8192}, 8192),
    "gpt2": ({"n_positions": 48}, 48),
    "mpt": ({"max_seq_len": 40}, 40),
    "bloom": ({"seq_length": 2048}, 2048),
    "mamba": ({}, None),
    "falcon_mamba": ({}, None),
}


@pytest.mark.parametrize("family", LENGTHS)
def test_every_familys_name_for_it_is_known(family: str) -> None:
    changes, length = LENGTHS[family]
    assert context_length(tiny_config(family, **changes)) == length


def test_the_smallest_of_the_kept_components_whatever_they_call_it(tmp_path: Path) -> None:
    parents = [tiny_model(family, **LENGTHS[family][0]) for family in ("mamba", "llama", "mpt")]
    hybrid = manticore.combine(parents, num_blocks=2, check=False)
    assert hybrid.config.max_position_embeddings == 40
    for path, length in (([1, 1], 8192), ([2, 0], 40), ([0, 0], None)):
        small = manticore.discretize(hybrid, path)
        small.save_pretrained(tmp_path / "small")
        for config in (small.config, AutoConfig.from_pretrained(tmp_path / "small")):
            # where nothing ends the attribute is absent, since tools ask whether it is there
            assert hasattr(config, "max_position_embeddings") == (length is not None)
            assert getattr(config, "max_position_embeddings", None) == length
    # what an earlier version saved has none
    hybrid.save_pretrained(tmp_path / "old")
    saved = json.loads((tmp_path / "old" / "config.json").read_text())
    assert saved.pop("max_position_embeddings") == 40
    (tmp_path / "old" / "config.json").write_text(json.dumps(saved))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "old").config.max_position_embeddings == 40


def test_a_stack_as_a_component_counts_like_any_other() -> None:
    stack = manticore.StackForCausalLM(
        manticore.StackConfig(layers=["mamba", "swiglu"], vocab_size=97, hidden_size=32, max_position_embeddings=24)
    ).eval()
    hybrid = manticore.combine([stack, tiny_model("llama")], num_blocks=2, check=False)
    assert hybrid.config.max_position_embeddings == 24
    assert manticore.discretize(hybrid, [1, 1]).config.max_position_embeddings == 64
