"""A GPT-Neo and a Mamba of a few thousand parameters, for the tests of all packages."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, MambaConfig, PreTrainedConfig, PreTrainedModel

NO_ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
"""Fields of models of tasks, whose tokens end no text."""


def gpt_neo_config(vocab_size: int, width: int, layers: int, **fields: Any) -> GPTNeoConfig:
    """Two heads that see everything before them, 64 positions; ``fields`` say what is otherwise."""
    usual = {"num_heads": 2, "attention_types": [[["global"], layers]], "max_position_embeddings": 64}
    return GPTNeoConfig(vocab_size=vocab_size, hidden_size=width, num_layers=layers, **{**usual, **fields})


def mamba_config(vocab_size: int, width: int, layers: int, **fields: Any) -> MambaConfig:
    """Four states per channel; ``fields`` say what is otherwise."""
    return MambaConfig(vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, state_size=4, **fields)


def seeded(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model with first weights that are always the same."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
