"""A discretized hybrid trains the same parameters before it is saved and after it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import gpt_neo_config, mamba_config, seeded
from transformers import AutoModelForCausalLM

import manticore


@pytest.mark.parametrize("path", [[0, 0], [0, 1], [1, 0], [1, 1]])
def test_embeddings_and_head_are_shared_where_the_family_shares_them(path: list[int], tmp_path: Path) -> None:
    parents = [seeded(gpt_neo_config(40, 16, 2), 0), seeded(mamba_config(40, 12, 2, expand=1), 1)]
    hybrid = manticore.combine(parents, num_blocks=2)
    small = manticore.discretize(hybrid, path)
    small.save_pretrained(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")

    def trained(model: torch.nn.Module) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in model.named_parameters()}

    assert trained(small) == trained(loaded)
