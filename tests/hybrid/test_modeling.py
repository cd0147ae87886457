"""The hybrid as a model of transformers: losses, generation, padding, precision, memory saving."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import BLOCKS, MIXINGS, Build, at_random_weights, random_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM

mixings = pytest.mark.parametrize("mixing", MIXINGS)


@pytest.fixture
def hybrid(build: Build) -> ManticoreForCausalLM:
    return at_random_weights(build("routed", 3))


@torch.no_grad()
def test_loss_is_that_of_the_next_token(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    labels = ids.clone()
    labels[0, :5] = -100
    output = hybrid(ids, labels=labels)
    shifted = labels[:, 1:]
    scores = output.logits[:, :-1].log_softmax(-1).gather(-1, shifted.clamp_min(0)[..., None])[..., 0]
    total = -scores[shifted != -100].sum()
    torch.testing.assert_close(output.loss, total / (shifted != -100).sum())
    # what Trainer passes when it accumulates gradients
    torch.testing.assert_close(hybrid(ids, labels=labels, num_items_in_batch=50).loss, total / 50)
    assert hybrid(ids).loss is None


@torch.no_grad()
def test_the_last_logits_alone(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    whole = hybrid(ids).logits
    for keep in (1, 4, 11, 50):
        kept = hybrid(ids, logits_to_keep=keep).logits
        assert kept.shape[1] == min(keep, 11)
        torch.testing.assert_close(kept, whole[:, -keep:], atol=1e-6, rtol=0)


@torch.no_grad()
def test_one_token(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    torch.testing.assert_close(hybrid(ids[:, :1]).logits, hybrid(ids).logits[:, :1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_left_padding_changes_no_logit(
    hybrid: ManticoreForCausalLM, ids: Tensor, left_padding: dict[str, Tensor]
) -> None:
    padded = hybrid(ids, **left_padding).logits
    alone = hybrid(ids[:1, 3:]).logits
    torch.testing.assert_close(padded[:1, 3:], alone, atol=2e-6, rtol=0)
    torch.testing.assert_close(padded[1], hybrid(ids[1:]).logits[0], atol=2e-6, rtol=0)


@mixings
@torch.no_grad()
def test_greedy_generation_is_an_argmax_loop(mixing: str, build: Build, ids: Tensor) -> None:
    hybrid = at_random_weights(build(mixing, 3))
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, hybrid(expected).logits[:, -1:].argmax(-1)], dim=1)
    got = hybrid.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(got, expected)


def test_sampling_follows_the_callers_seed(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    def draw() -> Tensor:
        torch.manual_seed(3)
        return hybrid.generate(ids, max_new_tokens=5, do_sample=True)

    assert torch.equal(draw(), draw())


@mixings
def test_gradient_checkpointing_changes_no_gradient(mixing: str, build: Build, ids: Tensor) -> None:
    hybrid = at_random_weights(build(mixing, 3)).train()
    for parameter in hybrid.mixing.mixture_parameters():
        parameter.requires_grad_(True)

    def gradients() -> dict[str, Tensor]:
        hybrid.zero_grad(set_to_none=True)
        hybrid(ids, labels=ids).loss.backward()
        # an embedding that no mixture reads at this boundary would be a hole in the test
        return {name: p.grad for name, p in hybrid.named_parameters() if p.grad is not None}

    plain = gradients()
    assert plain.keys() == dict(hybrid.named_parameters()).keys()
    for reentrant in (False, True):
        hybrid.gradient_checkpointing_enable({"use_reentrant": reentrant})
        saving = gradients()
        assert saving.keys() == plain.keys()
        assert all(torch.equal(saving[name], plain[name]) for name in plain)
    hybrid.gradient_checkpointing_disable()


@pytest.mark.parametrize(("gpt", "ssm"), [("gpt_neo", "mamba"), ("llama", "falcon_mamba"), ("gemma2", "mamba2")])
@torch.no_grad()
def test_bfloat16_beside_a_float32_stream(gpt: str, ssm: str, ids: Tensor, tmp_path: Any) -> None:
    for family in (gpt, ssm):
        tiny_model(family).save_pretrained(tmp_path / family)
    paths = [tmp_path / gpt, tmp_path / ssm]
    hybrid = manticore.combine(paths, num_blocks=2, dtype=torch.bfloat16)
    for k, path in enumerate(paths):
        own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        hybrid.set_mixture_weights([k, k])
        assert torch.equal(hybrid(ids).logits, own(input_ids=ids, use_cache=False).logits)
    for weights in ([0, 1], [1, 0], random_weights(2, 2)):
        hybrid.set_mixture_weights(weights)
        assert hybrid(ids).logits.isfinite().all()
    for path in ([0, 1], [1, 0], [0, 0], [1, 1]):
        hybrid.set_mixture_weights(path)
        small = manticore.discretize(hybrid, path)
        small.save_pretrained(tmp_path / "small")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
        expected = hybrid(ids).logits
        assert torch.equal(small(ids).logits, expected)
        assert torch.equal(loaded(ids).logits, expected)


def test_a_copy_is_its_own_model(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    with torch.no_grad():
        before = hybrid(ids).logits
        other = copy.deepcopy(hybrid)
        assert torch.equal(other(ids).logits, before)
        for parameter in other.parameters():
            parameter.zero_()
        other.set_mixture_weights([0] * BLOCKS)
        assert torch.equal(hybrid(ids).logits, before)
        assert not torch.equal(other(ids).logits, before)


def test_a_whole_hybrid_can_be_pickled(hybrid: ManticoreForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    torch.save(hybrid, tmp_path / "whole.pt")
    with torch.no_grad():
        expected = hybrid(ids).logits
        assert torch.equal(pickle.loads(pickle.dumps(hybrid))(ids).logits, expected)
        assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(ids).logits, expected)


def test_nothing_of_a_forward_pass_stays_behind(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    kept: list[weakref.ref[Tensor]] = []
    for runner in hybrid.runners:
        assert runner is not None
        runner.layers[0].register_forward_hook(lambda _layer, _args, output: kept.append(weakref.ref(_tensor(output))))
    hybrid.train()
    gc.collect()
    gc.disable()
    try:
        output = hybrid(ids, labels=ids)
        output.loss.backward()
        assert len(kept) == 3
        del output
        assert [tensor() for tensor in kept] == [None, None, None]
    finally:
        gc.enable()


def _tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_what_a_hybrid_cannot_do_is_refused(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    refused: dict[str, Any] = {
        "inputs_embeds has no meaning": lambda: hybrid(inputs_embeds=torch.zeros(1, 2, 32)),
        "give input_ids": lambda: hybrid(),
        "new_num_tokens is 0": lambda: hybrid.resize_token_embeddings(0),
        "pad_to_multiple_of is 2.0": lambda: hybrid.resize_token_embeddings(120, 2.0),
        "one per component": lambda: hybrid.set_input_embeddings(torch.nn.Embedding(3, 4)),
    }
    for reason, request in refused.items():
        with pytest.raises(ManticoreError, match=reason):
            request()


def test_components_are_the_whole_models(
    hybrid: ManticoreForCausalLM, parents: list[PreTrainedModel], ids: Tensor
) -> None:
    for k, parent in enumerate(parents):
        component = hybrid.component(k)
        assert type(component) is type(parent)
        with torch.no_grad():
            expected = parent(input_ids=ids, use_cache=False).logits
            assert torch.equal(component(input_ids=ids, use_cache=False).logits, expected)
    assert hybrid.num_parameters() == sum(parent.num_parameters() for parent in parents) + sum(
        parameter.numel() for parameter in hybrid.mixing.parameters()
    )


@mixings
@torch.no_grad()
def test_a_fresh_vocabulary_for_all(mixing: str, build: Build) -> None:
    hybrid = build(mixing, 3)
    layers = {name: value.clone() for name, value in hybrid.state_dict().items() if ".h." in name or ".layers." in name}
    assert hybrid.with_vocabulary(12, seed=1) is hybrid
    small_ids = torch.arange(12).view(2, 6)
    assert hybrid(small_ids).logits.shape == (2, 6, 12)
    state = hybrid.state_dict()
    assert all(torch.equal(state[name], value) for name, value in layers.items())
    # what translated between the old embeddings is gone, what translates between layers stays
    for translation in hybrid.mixing.translations():
        weight = translation.projector.weight
        touches_embeddings = 0 in (translation.source[1], translation.target[1])
        assert torch.equal(weight, torch.eye(*weight.shape)) == touches_embeddings
    for k in range(3):
        hybrid.set_mixture_weights([k] * BLOCKS)
        own = hybrid.component(k)(input_ids=small_ids, use_cache=False).logits
        assert torch.equal(hybrid(small_ids).logits, own)
