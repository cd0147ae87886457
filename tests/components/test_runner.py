"""A component taken apart by record and inject is the component."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.tiny_families import tiny_model
from manticore.components.runner import Recording, Runner
from manticore.errors import ManticoreError

# layers that return tensors, pairs and single values; positions from masks, tables, rotations and slopes; windows;
# states; an embedding that is narrower than the layers; layers that read the component's own embeddings
FAMILIES = ("gpt2", "gpt_neo", "opt", "bloom", "gemma2", "mistral", "mamba", "mamba2", "bamba", "falcon_h1", "zamba2")
WITHOUT_DROPOUT = ("gpt_neo", "llama", "bloom", "mamba", "bamba")
BATCH, TOKENS, PADDING = 2, 11, 3


def ids() -> Tensor:
    return torch.randint(3, 97, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))


def padded() -> tuple[Tensor, Tensor]:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[0, :PADDING] = 0
    return mask, (mask.cumsum(-1) - 1).clamp_min(0)


def logits_in_pieces(runner: Runner, cuts: list[int], **given: Any) -> Tensor:
    def pieces(recording: Recording) -> Tensor:
        hidden = recording.hidden
        for start, stop in itertools.pairwise(cuts):
            hidden = runner.run(recording, hidden, start, stop)
        return hidden

    return runner.logits(pieces, ids(), **given)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pieces_equal_the_own_forward(family: str) -> None:
    model = tiny_model(family)
    runner = Runner(model)
    mask, positions = padded()
    settings: list[dict[str, Tensor]] = [{}, {"attention_mask": mask}]
    if runner.accepts_positions:
        settings += [
            {"attention_mask": mask, "position_ids": positions},
            {"position_ids": torch.arange(TOKENS).expand(BATCH, -1) + 5},
        ]
    for given in settings:
        own = model(input_ids=ids(), use_cache=False, **given).logits
        for cuts in ([0, runner.num_layers], [0, 1, 3, runner.num_layers]):
            assert torch.equal(logits_in_pieces(runner, cuts, **given), own)
    # and the model itself is as it was
    assert torch.equal(model(input_ids=ids(), use_cache=False, **settings[-1]).logits, own)


@pytest.mark.parametrize("family", ["gpt_neo", "gemma2", "mamba"])
@torch.no_grad()
def test_some_tokens_alone_give_their_logits(family: str) -> None:
    runner = Runner(tiny_model(family))
    cuts = [0, runner.num_layers]
    whole = logits_in_pieces(runner, cuts)
    for keep, expected in ((2, whole[:, -2:]), (torch.tensor([0, 7]), whole[:, [0, 7]])):
        torch.testing.assert_close(logits_in_pieces(runner, cuts, logits_to_keep=keep), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_one_component_runs_while_another_waits() -> None:
    outer, inner = Runner(tiny_model("gpt_neo")), Runner(tiny_model("mamba"))

    def middle(recording: Recording) -> Tensor:
        between.append(logits_in_pieces(inner, [0, inner.num_layers]))
        return outer.run(recording, recording.hidden, 0, outer.num_layers)

    between: list[Tensor] = []
    logits = outer.logits(middle, ids())
    assert torch.equal(logits, outer.model(input_ids=ids(), use_cache=False).logits)
    assert torch.equal(between[0], inner.model(input_ids=ids(), use_cache=False).logits)


def gradients(model: PreTrainedModel, *, in_pieces: bool) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    mask, _ = padded()
    if in_pieces:
        logits = logits_in_pieces(Runner(model), [0, 2, model.config.num_hidden_layers], attention_mask=mask)
    else:
        logits = model(input_ids=ids(), attention_mask=mask, use_cache=False).logits
    logits.float().log_softmax(-1)[..., 5].sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(ours: dict[str, Tensor | None], own: dict[str, Tensor | None]) -> None:
    for name, gradient in own.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        assert torch.equal(ours[name], gradient), name


@pytest.mark.parametrize("family", WITHOUT_DROPOUT)
def test_gradients_equal_the_own_backward(family: str) -> None:
    model = tiny_model(family).train()
    assert_same(gradients(model, in_pieces=True), gradients(model, in_pieces=False))


@pytest.mark.parametrize("family", WITHOUT_DROPOUT)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(family: str, reentrant: bool) -> None:
    model = tiny_model(family).train()
    own = gradients(model, in_pieces=False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        # what Trainer does: a checkpoint of that kind passes no gradient unless an input asks for one
        model.enable_input_require_grads()
    assert_same(gradients(model, in_pieces=True), own)


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("family", ["gpt_neo", "zamba2", "mamba"])
def test_nothing_of_a_pass_stays_behind(family: str) -> None:
    runner = Runner(tiny_model(family).train())
    remains: list[weakref.ref[Tensor]] = []

    def middle(recording: Recording) -> Tensor:
        hidden = runner.run(recording, recording.hidden, 0, runner.num_layers)
        given = [value for _, kwargs in recording.calls for value in kwargs.values() if torch.is_tensor(value)]
        remains.extend(weakref.ref(tensor) for tensor in (recording.hidden, hidden, *given))
        return hidden

    logits = runner.logits(middle, ids())
    remains.append(weakref.ref(logits))
    del logits
    assert [remain() for remain in remains if remain() is not None] == []


@pytest.mark.usefixtures("no_garbage_collector")
@torch.no_grad()
def test_a_pass_that_fails_leaves_the_model_whole() -> None:
    model = tiny_model("llama")
    runner = Runner(model)
    before = model(input_ids=ids(), use_cache=False).logits
    layers = list(runner.layers)
    with pytest.raises(IndexError):
        runner.record(torch.full((1, 3), 97))
    with pytest.raises(RuntimeError):
        runner.logits(lambda recording: torch.zeros(1, 1, 5), ids())
    assert all(a is b for a, b in zip(runner.layers, layers))
    assert torch.equal(model(input_ids=ids(), use_cache=False).logits, before)
    assert torch.equal(logits_in_pieces(runner, [0, 4]), before)


def test_measuring_the_layers_keeps_every_mode() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    assert Runner(model).tuple_sizes == [0, 0, 0, 0]
    assert [module.training for module in model.modules()] == modes
    assert Runner(tiny_model("gpt_neo")).tuple_sizes == [2, 2, 2, 2]


@torch.no_grad()
def test_layers_that_return_other_than_they_used_to_are_refused() -> None:
    runner = Runner(tiny_model("gpt_neo"), tuple_sizes=[2, 2, 3, 2])
    recording = runner.record(ids())
    with pytest.raises(ManticoreError, match="layer 2 returned 2 values, 3 when the hybrid was built"):
        runner.run(recording, recording.hidden, 0, 4)


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ManticoreError, match="'llama' cannot be cut into blocks: it has no list of 5 decoder layers"):
        Runner(model)


def test_several_streams_are_refused() -> None:
    with pytest.raises(ManticoreError, match=r"its layers take \[4, 2, 11, 32\] \(expected \[2, 11, 32\]\)"):
        Runner(tiny_model("gemma3n_text")).record(ids())
