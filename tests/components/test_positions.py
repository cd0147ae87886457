"""Families with a table of positions end where their code does, and no others do."""

import pytest
import torch

from benchmarks.tiny_families import tiny_model
from manticore.components.positions import tabulated_positions

END = ("gpt2", "gpt_neo", "gptj", "codegen", "gpt_bigcode", "opt", "biogpt")
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
