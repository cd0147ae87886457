"""torch.compile: one graph, the same logits, and weights that change afterwards."""

from __future__ import annotations

import logging

import pytest
import torch
from hybrids import at_random_weights

import manticore
from benchmarks.tiny_families import tiny_model


@pytest.fixture
def compiling():
    """Nothing that was compiled for another test; torch tells every step of it to the log, which pytest would keep."""
    torch._dynamo.reset()
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiling")
@torch.no_grad()
def test_a_compiled_supernet_computes_the_same_in_one_graph_at_any_weights():
    parents = [tiny_model("gpt_neox", num_hidden_layers=2), tiny_model("llama", seed=1, num_hidden_layers=2)]
    supernet = at_random_weights(manticore.combine(parents, num_blocks=2))
    ids = torch.arange(8).reshape(2, 4)
    expected = supernet(ids).logits
    compiled = torch.compile(supernet, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids).logits, expected)
    supernet.set_mixture_weights([[0.9, 0.1], [0.2, 0.8]])
    with torch.compiler.set_stance("fail_on_recompile"):
        changed = compiled(ids).logits
    assert torch.equal(changed, supernet(ids).logits)
    assert not torch.equal(changed, expected)


@pytest.mark.usefixtures("compiling")
@torch.no_grad()
def test_a_compiled_hybrid_takes_left_padding_and_is_not_silent_about_what_it_would_have_to_rearrange():
    parents = [tiny_model("gpt_neox", num_hidden_layers=2), tiny_model("llama", seed=1, num_hidden_layers=2)]
    hybrid = manticore.combine(parents, num_blocks=2)
    compiled = torch.compile(hybrid, backend="eager", fullgraph=True)
    ids, mask = torch.arange(10).reshape(2, 5), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    for given in ({"attention_mask": mask}, {"attention_mask": mask, "position_ids": positions}):
        got = compiled(ids, **given).logits[mask.bool()]
        torch.testing.assert_close(got, hybrid(ids, **given).logits[mask.bool()], atol=1e-6, rtol=0)
    # from the second length on, a graph is made for sizes that vary
    for length in (7, 9):
        longer, seen = torch.arange(2 * length).reshape(2, length), torch.ones(2, length, dtype=torch.long)
        seen[0, : length - 4] = 0
        for given in ({}, {"position_ids": (seen.cumsum(1) - 1).clamp_min(0)}):
            got = compiled(longer, attention_mask=seen, **given).logits[seen.bool()]
            expected = hybrid(longer, attention_mask=seen, **given).logits[seen.bool()]
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    for given in (
        {"attention_mask": torch.tensor([[1, 0, 1, 1, 1]] * 2)},
        {"position_ids": torch.tensor([[0, 1, 0, 1, 2]] * 2)},
    ):
        with pytest.raises(RuntimeError, match="left-padded rows of one document only"):
            compiled(ids, **given)
