"""Tiny models and a tiny task that training tests share."""

import pytest
from copying_task import VOCABULARY, copying_task
from tiny_models import gpt_neo_config, mamba_config, seeded

from manticore.hybrid.combine import combine
from manticore.tasks.task import Task


@pytest.fixture
def gpt():
    return gpt_model()


def gpt_model():
    sizes = {"intermediate_size": 24, "max_position_embeddings": 32, "window_size": 8}
    return seeded(gpt_neo_config(VOCABULARY, 16, 2, **sizes), 1)


@pytest.fixture
def mamba():
    return mamba_model()


def mamba_model():
    return seeded(mamba_config(VOCABULARY, 12, 3), 2)


@pytest.fixture
def hybrid(gpt, mamba):
    return combine([gpt, mamba], num_blocks=2)


@pytest.fixture
def task() -> Task:
    return copying_task()
