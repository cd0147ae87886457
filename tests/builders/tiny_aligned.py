"""Tiny hybrids with random weights, and data sets, for the tests of alignment."""

import copy
import functools

import torch
from datasets import Dataset
from tiny_models import gpt_neo_config, mamba_config, seeded
from transformers import LlamaConfig

import manticore

VOCABULARY = 61
CONFIGS = {
    "gpt": gpt_neo_config(VOCABULARY, 16, 3, max_position_embeddings=32),
    "mamba": mamba_config(VOCABULARY, 24, 4),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    ),
}


def component(name, seed=0):
    return seeded(CONFIGS[name], seed)


def tokens_of(rows, length, seed=0):
    """Random ids ``[rows, length]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (rows, length), generator=generator)


def dataset(rows=60, length=16, seed=0, **columns):
    return Dataset.from_dict({"input_ids": tokens_of(rows, length, seed).tolist(), **columns})


@functools.cache
def built(names, mixing, projector):
    components = [component(name, seed) for seed, name in enumerate(names)]
    return manticore.combine(components, num_blocks=2, mixing=mixing, projector=projector, check=False)


def hybrid_of(*names, mixing="translated", projector="linear", **attributes):
    """A hybrid of two blocks; a copy, so that tests do not see each other."""
    hybrid = copy.deepcopy(built(names, mixing, projector))
    for name, value in attributes.items():
        setattr(hybrid, name, value)
    return hybrid


def snapshot(hybrid):
    return {name: value.clone() for name, value in hybrid.state_dict().items()}


def unchanged(hybrid, before, *, except_projectors=False):
    return all(
        torch.equal(value, before[name])
        for name, value in hybrid.state_dict().items()
        if not (except_projectors and ".projectors." in name)
    )
