"""What a discretized hybrid does not keep is gone, and what it keeps does not notice."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.tiny_families import tiny_model
from manticore.components.pruning import Dropped, prune_component
from manticore.components.runner import Runner
from manticore.errors import ManticoreError


def pruned(
    family: str, *, keep: tuple[int, ...] = (2, 3), embeddings: bool = False, head: bool = False
) -> tuple[PreTrainedModel, Runner]:
    model = tiny_model(family)
    runner = Runner(model)
    runner.tuple_sizes  # noqa: B018  (measured while the layers are there)
    prune_component(model, runner.layers, keep=keep, embeddings=embeddings, head=head)
    return model, runner


def ids() -> Tensor:
    return torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["gpt_neo", "gemma2", "mistral", "qwen3_next", "bamba", "falcon_h1", "mamba", "opt"])
@torch.no_grad()
def test_kept_layers_compute_what_they_did(family: str) -> None:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    whole = Runner(tiny_model(family))
    recording = whole.record(ids(), mask)
    hidden = torch.randn(recording.hidden.shape, generator=torch.Generator().manual_seed(1))
    expected = whole.run(recording, hidden, 2, 4)
    _, runner = pruned(family)
    recording = runner.record(ids(), mask)
    assert torch.equal(runner.run(recording, hidden, 2, 4), expected)
    assert sum(isinstance(layer, Dropped) for layer in runner.layers) == runner.num_layers - 2


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize(("embeddings", "head"), [(True, True), (True, False), (False, True), (False, False)])
def test_parameters_of_what_is_dropped_are_gone(family: str, embeddings: bool, head: bool) -> None:
    whole = tiny_model(family)
    table, layer = whole.get_input_embeddings().weight.numel(), Runner(whole).layers[0]
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    gone = 2 * sum(parameter.numel() for parameter in layer.parameters())
    if tied:
        gone += 0 if embeddings or head else table
    else:
        gone += table * ((not embeddings) + (not head))
    model, _ = pruned(family, embeddings=embeddings, head=head)
    assert model.num_parameters() == whole.num_parameters() - gone
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
@torch.no_grad()
def test_a_tied_table_stays_with_whichever_part_is_kept(family: str) -> None:
    whole = Runner(tiny_model(family))
    recording = whole.record(ids())
    hidden = whole.run(recording, recording.hidden, 0, whole.num_layers)

    model, first = pruned(family, keep=tuple(range(whole.num_layers)), embeddings=True)
    assert torch.equal(first.record(ids()).hidden, recording.hidden)
    assert not model.config.tie_word_embeddings
    assert model.all_tied_weights_keys == {}

    _, last = pruned(family, keep=tuple(range(whole.num_layers)), head=True)
    logits = [runner.logits(lambda _: hidden, ids()) for runner in (last, whole)]
    assert torch.equal(*logits)


@torch.no_grad()
def test_dropped_embeddings_follow_the_model_to_another_precision() -> None:
    model, runner = pruned("gpt2")
    for dtype in (torch.bfloat16, torch.float64):
        assert runner.record(ids()).hidden.dtype != dtype
        model.to(dtype=dtype)
        recording = runner.record(ids())
        assert recording.hidden.dtype == dtype
        assert runner.run(recording, recording.hidden, 2, 4).dtype == dtype


def test_what_was_dropped_can_be_read_but_takes_no_memory() -> None:
    model, runner = pruned("falcon_h1")
    for layers in (runner.layers, copy.deepcopy(model).model.layers):
        # the family's own initialiser walks to this table, which was left uninitialised in loaded hybrids
        assert layers[0].mamba.mup_vector.is_meta
        assert not list(layers[0].parameters())
        with pytest.raises(AttributeError, match="nonsense"):
            layers[0].nonsense  # noqa: B018


def test_a_family_that_shares_weights_between_layers_loses_none() -> None:
    with pytest.raises(ManticoreError, match="'zamba2' shares weights between its layers, so no layer can be dropped"):
        pruned("zamba2", embeddings=True, head=True)
    pruned("zamba2", keep=(0, 1, 2, 3))


def test_a_head_by_another_name_is_no_tie_between_layers() -> None:
    pruned("biogpt", keep=(0, 1), embeddings=True)
