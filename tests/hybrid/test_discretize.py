"""A discretized hybrid is the supernet at one vertex, and holds nothing that it does not need."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import BLOCKS, MIXINGS, Build, at_random_weights, random_weights
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM

mixings = pytest.mark.parametrize("mixing", MIXINGS)
PATHS = list(itertools.product(range(3), repeat=BLOCKS))


@mixings
@torch.no_grad()
def test_every_path_is_the_supernet_at_that_vertex(
    mixing: str, build: Build, ids: Tensor, left_padding: dict[str, Tensor]
) -> None:
    hybrid = build(mixing, 3)
    for path in PATHS:
        small = manticore.discretize(hybrid, path)
        hybrid.set_mixture_weights(list(path))
        for given in ({}, {"attention_mask": left_padding["attention_mask"]}, left_padding):
            assert torch.equal(small(ids, **given).logits, hybrid(ids, **given).logits)


def test_equal_weights_are_no_choice_and_that_is_said(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    hybrid = build("translated", 3)
    assert manticore.discretize(hybrid).config.path == [0] * BLOCKS
    assert "nothing was searched" in caplog.text
    caplog.clear()
    manticore.discretize(hybrid, [1] * BLOCKS)
    hybrid.set_mixture_weights([2] * BLOCKS)
    manticore.discretize(hybrid)
    assert caplog.text == ""


@mixings
def test_it_holds_kept_segments_hand_overs_embeddings_and_head(mixing: str, build: Build) -> None:
    hybrid = build(mixing, 3)
    for path in PATHS:
        small = manticore.discretize(hybrid, path)
        expected: dict[int, int] = {}

        def count(module: torch.nn.Module, into: dict[int, int] = expected) -> None:
            into.update({id(parameter): parameter.numel() for parameter in module.parameters()})

        for n, k in enumerate(path):
            runner = hybrid.runners[k]
            assert runner is not None
            for layer in runner.layers[slice(*hybrid.config.boundaries[k][n : n + 2])]:
                count(layer)
        first, last = hybrid.component(path[0]), hybrid.component(path[-1])
        count(first.get_input_embeddings())
        count(last.get_output_embeddings())
        for k in set(path):
            # small things that the family's own forward needs around the layers: positions and the final norm
            around = hybrid.component(k).base_model
            for name, child in around.named_children():
                if name in ("wpe", "ln_f", "norm_f", "norm"):
                    count(child)
        hand_overs = {f"{n}_{path[n - 1]}_{path[n]}" for n in range(1, BLOCKS) if path[n - 1] != path[n]}
        if mixing != "gated":
            for name in hand_overs:
                count(hybrid.mixing.projectors[name])
        assert small.num_parameters() == sum(expected.values())
        assert set(small.mixing.projectors) == (set() if mixing == "gated" else hand_overs)
        assert [runner is not None for runner in small.runners] == [k in path for k in range(3)]


@mixings
def test_the_largest_weights_or_the_best_path_are_kept(mixing: str, build: Build) -> None:
    hybrid = at_random_weights(build(mixing, 3), seed=4)
    best = hybrid.mixing.best_path()
    small = manticore.discretize(hybrid)
    assert small.config.path == best
    assert small.is_discretized
    assert not hybrid.is_discretized
    assert manticore.discretize(hybrid, torch.tensor(best)).config.path == best
    assert torch.equal(small.mixture_weights, torch.nn.functional.one_hot(torch.tensor(best), 3).float())
    assert torch.equal(torch.tensor(small.config.searched_weights), hybrid.mixture_weights)


@mixings
@pytest.mark.parametrize("path", [[0, 1, 2], [2, 2, 0], [1, 1, 1]])
@torch.no_grad()
def test_saved_and_loaded_nothing_is_made_up(
    mixing: str, path: list[int], build: Build, ids: Tensor, tmp_path: Path
) -> None:
    hybrid = build(mixing, 3)
    hybrid.set_mixture_weights(random_weights(BLOCKS, 3))
    small = manticore.discretize(hybrid, path)
    small.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, ManticoreForCausalLM)
    assert {name: list(found) for name, found in info.items() if found} == {}
    assert torch.equal(loaded(ids).logits, small(ids).logits)
    assert loaded.num_parameters() == small.num_parameters()
    assert loaded.config.path == path
    assert torch.equal(torch.tensor(loaded.config.searched_weights), random_weights(BLOCKS, 3))
    assert torch.equal(loaded.mixture_weights, small.mixture_weights)


@pytest.mark.parametrize("path", [[0, 1, 1], [1, 1, 0], [0, 1, 0]], ids=["embedding kept", "head kept", "both kept"])
@torch.no_grad()
def test_a_tied_table_survives_with_either_end(path: list[int], build: Build, ids: Tensor, tmp_path: Path) -> None:
    models = [tiny_model("gpt2"), tiny_model("gpt_neox")]
    assert models[0].get_output_embeddings().weight is models[0].get_input_embeddings().weight
    hybrid = build(models=models)
    hybrid.set_mixture_weights(path)
    small = manticore.discretize(hybrid, path)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for each in (small, loaded):
        assert torch.equal(each(ids).logits, hybrid(ids).logits)
    tied = loaded.component(0)
    if path == [0, 1, 0]:
        assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert sum("wte" in name or "lm_head" in name for name, _ in tied.named_parameters()) == 1


@torch.no_grad()
def test_tables_that_were_rounded_with_the_model_are_kept_so(ids: Tensor, tmp_path: Path) -> None:
    # rotary frequencies are in no state dict, and building them anew gives them in full precision
    hybrid = manticore.combine([tiny_model("llama").bfloat16(), tiny_model("mamba").bfloat16()], num_blocks=2)
    for path in ([0, 0], [0, 1], [1, 0]):
        hybrid.set_mixture_weights(path)
        small = manticore.discretize(hybrid, path)
        assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
        assert torch.equal(small(ids).logits, hybrid(ids).logits)


@torch.no_grad()
def test_it_is_a_copy(build: Build, ids: Tensor) -> None:
    hybrid = build("translated", 2)
    small = manticore.discretize(hybrid, [0, 1, 0])
    expected = small(ids).logits
    before = {name: value.clone() for name, value in hybrid.state_dict().items()}
    for parameter in hybrid.parameters():
        parameter.add_(1)
    assert torch.equal(small(ids).logits, expected)
    hybrid.load_state_dict(before)
    for parameter in small.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in hybrid.state_dict().items())


def test_mode_tokenizer_and_generation_settings_come_along(checkpoints: list[Path]) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2).train()
    hybrid.generation_config.max_new_tokens = 7
    small = manticore.discretize(hybrid, [1, 0])
    assert small.training
    assert small.tokenizer is hybrid.tokenizer
    assert small.generation_config.max_new_tokens == 7
    assert small.generation_config is not hybrid.generation_config


def test_it_trains(build: Build, ids: Tensor) -> None:
    small = manticore.discretize(build("translated", 3), [2, 0, 1]).train()
    small(ids, labels=ids).loss.backward()
    unused = {name for name, parameter in small.named_parameters() if parameter.grad is None}
    # the norms before heads that were dropped
    assert {name.rpartition(".")[0] for name in unused} <= {
        "component_0.transformer.wpe",
        "component_0.transformer.ln_f",
        "component_2.model.norm",
    }


@torch.no_grad()
def test_a_fresh_vocabulary_after_discretizing(build: Build) -> None:
    small = manticore.discretize(build("translated", 3), [1, 0, 2])
    small.with_vocabulary(9)
    assert small(torch.arange(9)[None]).logits.shape == (1, 9, 9)


@pytest.mark.parametrize("path", [[0, 1], [0, 1, 2], [0, -1, 1], [[1.0, 0.0]] * 3, [0.0, 1.0, 0.0], "011", []])
def test_paths_that_lead_nowhere(path: Any, build: Build) -> None:
    with pytest.raises(ManticoreError, match=r"discretize: path .* \(expected 3 indices from 0 to 1\)"):
        manticore.discretize(build("translated", 2), path)


def test_what_is_discretized_stays_so(build: Build) -> None:
    small = manticore.discretize(build("translated", 2), [1, 0, 1])
    with pytest.raises(ManticoreError, match=r"the hybrid is discretized already, to path \[1, 0, 1\]"):
        manticore.discretize(small)
    with pytest.raises(ManticoreError, match=r"discretized to path \[1, 0, 1\] and holds no other segments"):
        small.set_mixture_weights([0, 0, 0])
    small.set_mixture_weights([1, 0, 1])
    only = manticore.discretize(build("translated", 2), [1, 1, 1])
    with pytest.raises(ManticoreError, match=r"component 0 was dropped when this hybrid was discretized"):
        only.component(0)


def test_layers_that_share_weights_are_not_torn_apart(build: Build, ids: Tensor) -> None:
    hybrid = build(models=[tiny_model("zamba2"), tiny_model("mamba")])
    with pytest.raises(ManticoreError, match="'zamba2' shares weights between its layers"):
        manticore.discretize(hybrid, [0, 1, 0])
    # without a layer of it, or with all of them, nothing is torn
    for path in ([1, 1, 1], [0, 0, 0]):
        hybrid.set_mixture_weights(path)
        with torch.no_grad():
            assert torch.equal(manticore.discretize(hybrid, path)(ids).logits, hybrid(ids).logits)


def test_adapters_have_to_be_merged_first(tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel) -> None:
    hybrid = manticore.combine([tiny_gpt, tiny_mamba], num_blocks=2)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2), hybrid)
    with pytest.raises(ManticoreError, match=r"the hybrid has adapters.*Fix: hybrid = peft_model\.merge_and_unload"):
        manticore.discretize(hybrid, [0, 1])
