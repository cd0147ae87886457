"""A discretized hybrid trains the same parameters before it is saved and after it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM, MambaConfig, MambaForCausalLM

import manticore


@pytest.mark.parametrize("path", [[0, 0], [0, 1], [1, 0], [1, 1]])
def test_embeddings_and_head_are_shared_where_the_family_shares_them(path: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt = GPTNeoConfig(vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global"], 2]])
    mamba = MambaConfig(vocab_size=40, hidden_size=12, num_hidden_layers=2, state_size=4, expand=1)
    hybrid = manticore.combine([GPTNeoForCausalLM(gpt), MambaForCausalLM(mamba)], num_blocks=2)
    small = manticore.discretize(hybrid, path)
    small.save_pretrained(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")

    def trained(model: torch.nn.Module) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in model.named_parameters()}

    assert trained(small) == trained(loaded)
