"""Tiny models and a tiny task that training tests share."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, GPTNeoConfig, MambaConfig

from manticore.hybrid.combine import combine
from manticore.tasks.metrics import TokenMetrics
from manticore.tasks.task import Task

VOCABULARY = 13
LENGTH = 10


@pytest.fixture
def gpt():
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
    torch.manual_seed(2)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=12, num_hidden_layers=3, state_size=4)
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def hybrid(gpt, mamba):
    return combine([gpt, mamba], num_blocks=2)


def copying_task(examples: int = 24, vocab_size: int | None = VOCABULARY, length: int = LENGTH) -> Task:
    """Predict the token before last; the first position has no target."""
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (examples, length))
    targets = np.roll(rows, 1, axis=1)
    targets[:, 0] = -100
    split = Dataset.from_dict({"input_ids": rows.tolist(), "targets": targets.tolist()})
    return Task(
        name="copying",
        vocab_size=vocab_size,
        length=length,
        data=DatasetDict(train=split, validation=split, test=split.select(range(7))),
        primary_metric="accuracy",
        higher_is_better=True,
        metric_state=TokenMetrics,
    )


@pytest.fixture
def task() -> Task:
    return copying_task()
