"""What a path is said to cost is what its discretized hybrid does cost."""

import itertools
import time

import pytest
import torch
from tiny_models import NO_ENDS, seeded
from tiny_search import VOCABULARY, make_hybrid, tiny_gpt, tiny_mamba
from transformers import LlamaConfig, MistralConfig

import manticore
from manticore.errors import ManticoreError
from manticore.hybrid.classification import ManticoreForPairClassification, ManticoreForSequenceClassification
from manticore.search.cost_table import cost_table
from manticore.search.costs import CostTable
from manticore.training.budget import cache_cost, cached_tensors, count_parameters, flops_per_token_forward


def tiny_llama():
    """Four layers, a head tied to the embeddings, fewer keys than queries."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=20,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        tie_word_embeddings=True,
        **NO_ENDS,
    )
    return seeded(config, 0)


def tiny_mistral():
    """A window of five tokens."""
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        sliding_window=5,
        **NO_ENDS,
    )
    return seeded(config, 0)


@torch.no_grad()
def held_by_its_cache(model, tokens, batch):
    cache = model.new_cache()
    model(input_ids=torch.zeros(batch, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
    tensors = [t for t in cached_tensors(cache.layers, set()) if t.is_floating_point()]
    return sum(t.numel() * t.element_size() for t in tensors)


def measured(model, tokens, batch):
    return {
        "cache_bytes": held_by_its_cache(model, tokens, batch),
        "state_bytes": batch * cache_cost(model, tokens).state_bytes,
        "parameters": count_parameters(model).total,
        "flops_per_token": flops_per_token_forward(model, tokens),
    }


SUPERNETS = {
    "two components": lambda: make_hybrid(),
    "routed, three blocks, tied head": lambda: manticore.combine(
        [tiny_llama(), tiny_mamba(0)], num_blocks=3, mixing="routed", projector="low-rank", check=False
    ),
    "three components": lambda: manticore.combine(
        [tiny_gpt(0, 0.0), tiny_mamba(0), tiny_llama()], num_blocks=2, check=False
    ),
    "released: the first one's head": lambda: manticore.combine(
        [tiny_llama(), tiny_mamba(0)], num_blocks=2, mixing="gated", released=True, check=False
    ),
    "given boundaries": lambda: manticore.combine(
        [tiny_llama(), tiny_mamba(0)], boundaries=[[0, 3, 4], [0, 1, 3]], check=False
    ),
    "one block": lambda: make_hybrid(num_blocks=1),
}


@pytest.mark.parametrize("name", SUPERNETS)
def test_every_path_costs_what_its_discretized_hybrid_costs(name):
    hybrid = SUPERNETS[name]()
    table = cost_table(hybrid, "tokens=16,batch=3")
    shape = range(hybrid.config.num_components), hybrid.config.num_blocks
    for path in itertools.product(shape[0], repeat=shape[1]):
        expected = measured(manticore.discretize(hybrid, path).eval(), 16, 3)
        assert table.of(path) == pytest.approx(expected, rel=1e-12), path


def test_a_window_that_is_full_is_state():
    hybrid = manticore.combine([tiny_mistral(), tiny_mamba(0)], num_blocks=2, check=False)
    table = cost_table(hybrid, "tokens=24,batch=1")
    costs = table.of((0, 0))
    assert (
        costs["cache_bytes"] == costs["state_bytes"] == held_by_its_cache(manticore.discretize(hybrid, (0, 0)), 24, 1)
    )
    short = cost_table(hybrid, "tokens=3,batch=1").of((0, 0))
    assert short["state_bytes"] == 0 < short["cache_bytes"] < costs["cache_bytes"]


@pytest.mark.parametrize("kind", [ManticoreForSequenceClassification, ManticoreForPairClassification])
def test_classifiers_have_costs_but_no_cache(kind):
    hybrid = kind.from_causal_lm(make_hybrid(), num_labels=3)
    table = cost_table(hybrid, "tokens=12,batch=2", ["prefill_ms"], rounds=1)
    for path in itertools.product(range(2), repeat=2):
        small = manticore.discretize(hybrid, path)
        costs = table.of(path)
        assert costs.pop("prefill_ms") > 0
        expected = {"parameters": count_parameters(small).total, "flops_per_token": flops_per_token_forward(small, 12)}
        assert costs == pytest.approx(expected, rel=1e-12), path
    with pytest.raises(ManticoreError, match=r"max: cache_bytes, but a classifier does not decode\. Fix: leave it out"):
        cost_table(hybrid, None, ["cache_bytes"])


def test_times_are_sums_of_parts_and_measuring_changes_nothing():
    hybrid, ids = make_hybrid(dropout=0.1), torch.arange(6)[None]
    hybrid.eval()
    before = hybrid(input_ids=ids).logits
    hybrid.train()
    readings = itertools.count()
    table = cost_table(hybrid, "tokens=32,batch=2", ["decode_ms", "prefill_ms"], rounds=2, clock=lambda: next(readings))
    assert hybrid.training
    assert all(module.training for module in hybrid.modules())
    hybrid.eval()
    assert torch.equal(hybrid(input_ids=ids).logits, before)
    for cost in (table.costs["decode_ms"], table.costs["prefill_ms"]):
        # a clock that ticks once per reading: around each of two blocks, around the pass, the record and the hand-over
        assert cost.blocks == ((1e3, 1e3), (1e3, 1e3))
        assert cost.handovers == ((0.0, 1e3), (1e3, 0.0))
        assert cost.presence == (1e3, 1e3)
        assert cost.of((0, 0)) == cost.of((1, 1)) == 5e3
        assert cost.of((0, 1)) == 7e3
    assert CostTable.read(table.to_dict()) == table


def test_times_are_real_by_default():
    begun = time.perf_counter()
    costs = cost_table(make_hybrid(), "tokens=16,batch=1", ["decode_ms"], rounds=3).of((0, 1))
    assert 0 < costs["decode_ms"] < 1e3 * (time.perf_counter() - begun)


def test_a_workload_has_to_fit_the_positions():
    hybrid = make_hybrid()
    assert str(cost_table(hybrid).workload) == "tokens=32,batch=1"
    with pytest.raises(ManticoreError) as caught:
        cost_table(hybrid, "tokens=64,batch=2")
    expected = "64 tokens, but component 0 (gpt_neo) has positions for 32. Fix: workload: tokens=32,batch=2"
    assert str(caught.value) == f"search: workload: {expected}"
    with pytest.raises(ManticoreError, match=r"timed with 16 tokens or more, got tokens=8,batch=1\. Fix: workload:"):
        cost_table(hybrid, "tokens=8", ["decode_ms"])
    free = manticore.combine([tiny_mamba(0), tiny_llama()], num_blocks=1, check=False)
    assert str(cost_table(free).workload) == "tokens=4096,batch=1"
