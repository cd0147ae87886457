"""Fresh layers beside a parent: what they start from, and that paths and searches go through both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import recall, tiny_gpt
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.fresh import fresh_branch
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.training.budget import flops_per_step
from manticore.training.trainable import set_trainable

LAYERS = ["mh-gated-linear-attention"]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """Five layers, four heads, two of keys and values."""
    return tiny_model("llama", seed=3, num_hidden_layers=5, num_key_value_heads=2)


@pytest.fixture(scope="module")
def hybrid(llama: PreTrainedModel) -> ManticoreForCausalLM:
    return manticore.combine([llama, "fresh:mh-gated-linear-attention"], num_blocks=3, check=False)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mh-linear-attention", "mh-gated-linear-attention", "delta-net", "gated-delta-net"])
def test_linear_forms_of_attention_have_its_queries_keys_values_and_output(name: str, llama: PreTrainedModel) -> None:
    branch = fresh_branch(llama, ["swiglu", name], num_blocks=3)
    x = torch.randn(2, 5, llama.config.hidden_size, generator=torch.Generator().manual_seed(0))
    heads, groups = llama.config.num_attention_heads, llama.config.num_key_value_heads
    assert groups < heads
    # blocks begin at layers 0, 2 and 3
    for n, edge in enumerate([0, 2, 3]):
        theirs, layer = llama.model.layers[edge], branch.model.layers[2 * n + 1]
        ours: Any = layer.mixer
        assert ours.num_heads == heads
        parts = ours.qkv_proj(x).chunk(3, -1) if hasattr(ours, "qkv_proj") else None
        q, k, v = parts or (ours.q_proj(x), ours.k_proj(x), ours.v_proj(x))
        attention = theirs.self_attn
        torch.testing.assert_close(q, attention.q_proj(x))
        for made, given in ((k, attention.k_proj(x)), (v, attention.v_proj(x))):
            by_head = given.unflatten(-1, (groups, -1))
            for h, one in enumerate(made.unflatten(-1, (heads, -1)).unbind(-2)):
                torch.testing.assert_close(one, by_head[..., h // (heads // groups), :])
        torch.testing.assert_close(ours.out_proj(x), attention.o_proj(x))
        torch.testing.assert_close(layer.norm(x), theirs.input_layernorm(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(branch.model.norm(x), llama.model.norm(x), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_maps_that_are_kept_as_one_matrix_are_taken_apart() -> None:
    parent = tiny_model("gpt2", seed=1)
    ours: Any = fresh_branch(parent, LAYERS, num_blocks=1).model.layers[0].mixer
    theirs, x = parent.transformer.h[0].attn, torch.randn(1, 3, parent.config.hidden_size)
    found = torch.cat([ours.q_proj(x), ours.k_proj(x), ours.v_proj(x)], -1)
    torch.testing.assert_close(found, theirs.c_attn(x) - theirs.c_attn.bias)
    torch.testing.assert_close(ours.out_proj(x), theirs.c_proj(x) - theirs.c_proj.bias)


def test_where_there_is_no_attention_the_seed_alone_decides() -> None:
    parent = tiny_model("mamba", seed=2)
    one, same, other = (fresh_branch(parent, LAYERS, num_blocks=2, seed=seed).state_dict() for seed in (0, 0, 1))
    name = "model.layers.0.mixer.q_proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert torch.equal(one["model.embed_tokens.weight"], parent.get_input_embeddings().weight)
    assert torch.equal(one["lm_head.weight"], parent.get_output_embeddings().weight)


def test_blocks_start_from_the_segments_of_given_boundaries(llama: PreTrainedModel) -> None:
    branch = fresh_branch(llama, LAYERS, num_blocks=2, boundaries=[0, 4, 5])
    for layer, at in zip(branch.model.layers, (0, 4)):
        assert torch.equal(layer.mixer.q_proj.weight, llama.model.layers[at].self_attn.q_proj.weight)
    hybrid = manticore.combine([llama, branch], boundaries=[[0, 4, 5], [0, 1, 2]], check=False)
    assert hybrid.config.num_blocks == 2


def test_a_name_stands_for_a_branch(llama: PreTrainedModel) -> None:
    other = tiny_model("gpt_neo", seed=1)
    how: dict[str, Any] = {"num_blocks": 2, "check": False}
    hybrid = manticore.combine(["fresh:gated-delta-net+swiglu@2", other, llama, "fresh:swiglu"], **how)
    expected = fresh_branch(llama, ["gated-delta-net", "swiglu"], num_blocks=2)
    assert hybrid.config.boundaries[0] == [0, 2, 4]
    assert hybrid.config.component_0.layers == expected.config.layers
    for name, value in expected.state_dict().items():
        assert torch.equal(hybrid.component(0).state_dict()[name], value), name
    assert torch.equal(hybrid.component(3).get_input_embeddings().weight, other.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (["fresh:swiglu", "fresh:swiglu"], r"^combine: fresh:swiglu stands beside no parent \(expected a checkpoint"),
        ([0, "fresh:swiglu@1"], r"^combine: fresh:swiglu@1 stands beside no parent \(expected one of \[0\]\)"),
        ([0, "fresh:swigluu"], "swigluu.*Did you mean"),
        ([0, "fresh:"], "layer"),
    ],
)
def test_names_of_no_branch(models: list[Any], reason: str, llama: PreTrainedModel) -> None:
    with pytest.raises(ManticoreError, match=reason) as caught:
        manticore.combine([llama if each == 0 else each for each in models], check=False)
    assert len(str(caught.value).splitlines()) == 1


@torch.no_grad()
def test_the_parent_stays_what_it_is_and_paths_go_through_fresh_layers(
    hybrid: ManticoreForCausalLM, llama: PreTrainedModel, ids: Tensor, tmp_path: Path
) -> None:
    hybrid.set_mixture_weights([0, 0, 0])
    alone = hybrid(ids).logits
    assert torch.equal(alone, llama(ids, use_cache=False).logits)
    hybrid.set_mixture_weights([0, 1, 0])
    small = manticore.discretize(hybrid, [0, 1, 0])
    assert torch.equal(small(ids).logits, hybrid(ids).logits)
    assert not torch.allclose(small(ids).logits, alone)
    # between the two nothing translates
    assert not len(hybrid.mixing.projectors)
    assert not len(small.mixing.projectors)
    rows = llama.config.vocab_size
    tables = [name for name, value in small.named_parameters() if value.shape[0] == rows]
    assert all(name.startswith("component_0") for name in tables)
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, small(ids).logits)
    assert again.config.parents[1]["source"] == "fresh:mh-gated-linear-attention"
    first = again(ids[:, :7], use_cache=True)
    rest = again(ids[:, 7:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), small(ids).logits, atol=1e-5, rtol=0)


def test_low_rank_updates_reach_fresh_layers(hybrid: ManticoreForCausalLM) -> None:
    small = manticore.discretize(hybrid, [0, 1, 0])
    set_trainable(small, "lora", lora_rank=2)
    updated = {name for name, value in small.named_parameters() if "lora_" in name and value.requires_grad}
    for component, map_ in (("component_0", "self_attn.q_proj"), ("component_1", "layers.1.mixer.q_proj")):
        assert any(name.startswith(component) and map_ in name for name in updated)


def test_one_search_covers_pretrained_and_fresh_blocks() -> None:
    parent = tiny_gpt(0, 0.0)
    hybrid = manticore.combine([parent, fresh_branch(parent, LAYERS, num_blocks=2)], num_blocks=2, check=False)
    how: dict[str, Any] = {"batch_size": 8, "cpu": True}
    unit = 12 * flops_per_step(manticore.discretize(hybrid, [0, 0]), 8, recall().length)
    raced = manticore.search(hybrid, recall(), method="race", finetune_flops=unit, **how)
    assert {tuple(each.path) for each in raced.candidates} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for method in ("darts", "dash", "gaea"):
        learned = manticore.search(hybrid, recall(), method=method, steps=1, mixture_lr=0.1, **how)
        assert bool(((learned.weights - 0.5).abs() > 1e-4).all()) or method == "dash"
        # the branch by itself is a small stack that nobody has trained: no parent, whose score before the search counts
        before = [each.path for each in learned.shared if each.points[0].steps == 0]
        assert before == [[0, 0]]
        assert sorted(each.path for each in learned.shared) == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"layers": []}, r"layers is no list of layers\. Fix: such as"),
        ({"layers": "swiglu"}, r"layers is no list of layers\. Fix: such as"),
        ({"layers": ["swigluu"]}, "swigluu.*Did you mean"),
        ({"layers": [["mh-linear-attention", {"num_heads": 5}]]}, "5 heads do not divide width"),
        ({"layers": ["swiglu", ["swiglu", {}, {"weights_of": 0}]]}, "swiglu shares with lower layers"),
        ({"num_blocks": 6}, "6 blocks, but a component has only 5 layers"),
        ({"boundaries": [0, 1, 2, 6]}, r"boundaries \[0, 1, 2, 6\], but the parent has 5 layers"),
        ({"boundaries": [0, 2, 5]}, r"boundaries \[0, 2, 5\] \(expected 4 rising"),
        ({"boundaries": [0, 2, 2, 5]}, r"boundaries \[0, 2, 2, 5\] \(expected 4 rising"),
    ],
)
def test_branches_that_cannot_be(given: dict[str, Any], reason: str, llama: PreTrainedModel) -> None:
    with pytest.raises(ManticoreError, match=reason) as caught:
        fresh_branch(llama, **{"layers": LAYERS, "num_blocks": 3, **given})
    assert len(str(caught.value).splitlines()) == 1


def test_tables_of_another_width_than_the_layers_are_refused() -> None:
    with pytest.raises(ManticoreError, match=r"^fresh_branch: opt has embeddings or a head of another width"):
        fresh_branch(tiny_model("opt", word_embed_proj_dim=16), LAYERS, num_blocks=1)
