"""Families with a table of positions end where their code does, and no others do."""

import pytest
import torch

from benchmarks.tiny_families import tiny_model
from manticore.components.positions import tabulated_positions
from manticore.errors import ManticoreError
from manticore.stacks.autoencoder import StackForAutoEncoding
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM

END = ("gpt2", "gpt_neo", "gptj", "codegen", "gpt_bigcode", "opt", "biogpt", "mpt")
GO_ON = ("gpt_neox", "xglm", "llama", "modernbert-decoder", "jamba", "mamba", "bloom")


@pytest.mark.parametrize("family", [*END, *GO_ON])
def test_a_table_ends_where_the_model_fails(family):
    model = tiny_model(family).eval()
    limit = tabulated_positions(model)
    assert (limit is not None) == (family in END)

    def run(tokens):
        with torch.no_grad():
            model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)

    if limit is None:
        run(getattr(model.config, "max_position_embeddings", 64) + 2)
        return
    run(limit)
    with pytest.raises((IndexError, RuntimeError)):
        run(limit + 1)


@pytest.mark.parametrize(("layers", "limit"), [(["hyena", "swiglu"], 24), (["mh-attention", "swiglu"], None)])
def test_a_stack_ends_where_its_filters_do(layers, limit):
    model = StackForCausalLM(
        StackConfig(layers=layers, vocab_size=9, hidden_size=32, max_position_embeddings=24)
    ).eval()
    assert tabulated_positions(model) == limit
    if limit is None:
        model(input_ids=torch.ones(1, 26, dtype=torch.long))
    else:
        with pytest.raises(ManticoreError, match="the filters reach over 24"):
            model(input_ids=torch.ones(1, 25, dtype=torch.long))


def test_an_auto_encoder_ends():
    model = StackForAutoEncoding(
        StackConfig(layers=["mh-attention", "swiglu"], vocab_size=9, hidden_size=32, max_position_embeddings=24)
    )
    assert tabulated_positions(model) == 24
    with pytest.raises(ManticoreError, match="a sequence of 25 tokens"):
        model(input_ids=torch.ones(1, 25, dtype=torch.long))
