"""Tiny models and a tiny task that training tests share."""

import pytest
import torch
from copying_task import VOCABULARY, copying_task
from transformers import AutoModelForCausalLM, GPTNeoConfig, MambaConfig

from manticore.hybrid.combine import combine
from manticore.tasks.task import Task


@pytest.fixture
def gpt():
    return gpt_model()


def gpt_model():
    torch.manual_seed(1)
    config = GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        attention_types=[[["global"], 2]],
        window_size=8,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def mamba():
    return mamba_model()


def mamba_model():
    torch.manual_seed(2)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=12, num_hidden_layers=3, state_size=4)
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def hybrid(gpt, mamba):
    return combine([gpt, mamba], num_blocks=2)


@pytest.fixture
def task() -> Task:
    return copying_task()
