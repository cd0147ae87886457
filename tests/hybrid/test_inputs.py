"""What forward takes: shapes, ranges, caches, outputs; and what it says of anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hybrids import Build, at_random_weights
from torch import Tensor

import manticore
from manticore.errors import ManticoreError
from manticore.hybrid.decoding import HybridCache
from manticore.hybrid.modeling import ManticoreForCausalLM

IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["supernet", "discretized"])
def hybrid(request: pytest.FixtureRequest, build: Build) -> ManticoreForCausalLM:
    supernet = at_random_weights(build())
    return supernet if request.param == "supernet" else manticore.discretize(supernet, [0, 1, 1])


WRONG: dict[str, tuple[str, Callable[[ManticoreForCausalLM], Any]]] = {
    "one row": (
        r"input_ids has shape \[11\] \(expected \[batch, tokens\]\). Fix: input_ids\[None\]",
        lambda h: h(IDS[0]),
    ),
    "no sequence": (r"shape \[0, 11\] \(expected \[batch, tokens\]\).* at least one", lambda h: h(IDS[:0])),
    "no token": (r"shape \[2, 0\] \(expected \[batch, tokens\]\).* at least one", lambda h: h(IDS[:, :0])),
    "numbers": ("input_ids are torch.float32", lambda h: h(IDS.float())),
    "negative": (
        r"go from -100 to \d+, the vocabulary from 0 to 96",
        lambda h: h(IDS.masked_fill(IDS[0, 3] == IDS, -100)),
    ),
    "too large": (r"to 97, the vocabulary from 0 to 96", lambda h: h(IDS.masked_fill(IDS[0, 3] == IDS, 97))),
    "short mask": (
        r"attention_mask has shape \[2, 5\] \(expected \[2, 11\]",
        lambda h: h(IDS, attention_mask=torch.ones(2, 5)),
    ),
    "mask of others": (r"has shape \[3, 11\] \(expected \[2, 11\]", lambda h: h(IDS, attention_mask=torch.ones(3, 11))),
    "mask of pairs": (r"has shape \[2, 1, 11, 11\] ", lambda h: h(IDS, attention_mask=torch.ones(2, 1, 11, 11))),
    "masks by kind": (
        "attention_mask is a dict",
        lambda h: h(IDS, attention_mask={"full_attention": torch.ones(2, 11)}),
    ),
    "positions": (r"position_ids has shape \[1, 5\]", lambda h: h(IDS, position_ids=torch.arange(5)[None])),
    "labels": (r"labels has shape \[2, 5\]", lambda h: h(IDS, labels=IDS[:, :5])),
    "labels of some": ("labels need all logits", lambda h: h(IDS, labels=IDS, logits_to_keep=2)),
    "fewer than none": ("logits_to_keep is -1", lambda h: h(IDS, logits_to_keep=-1)),
    "attentions": ("recurrent ones have none", lambda h: h(IDS, output_attentions=True)),
    "cache of another hybrid": ("is that of another hybrid", lambda h: h(IDS, past_key_values=other_cache(h))),
    "cache, but none wanted": ("use_cache is False", lambda h: h(IDS, past_key_values=h.new_cache(), use_cache=False)),
    "cache of two": (
        "holds 2 sequences, input_ids 1",
        lambda h: h(IDS[:1], past_key_values=h(IDS, use_cache=True).past_key_values),
    ),
    "mask without the cached": (
        r"has shape \[2, 1\] \(expected \[2, 12\]",
        lambda h: h(
            IDS[:, :1], attention_mask=torch.ones(2, 1), past_key_values=h(IDS, use_cache=True).past_key_values
        ),
    ),
}


def other_cache(hybrid: ManticoreForCausalLM) -> Any:
    config = hybrid.config
    everything = [list(range(component.num_hidden_layers)) for component in config.components]
    return HybridCache(config.components, [*everything[:-1], []] if config.path is None else everything)


@pytest.mark.parametrize("what", WRONG)
@torch.no_grad()
def test_what_fits_nowhere_is_said_in_one_line(hybrid: ManticoreForCausalLM, what: str) -> None:
    reason, ask = WRONG[what]
    with pytest.raises(ManticoreError, match=f"{reason}.*") as caught:
        ask(hybrid)
    assert "Fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_refused_call_leaves_cache_and_hybrid_as_they_were(hybrid: ManticoreForCausalLM) -> None:
    before = hybrid(IDS).logits
    cache = hybrid(IDS[:, :9], use_cache=True).past_key_values
    with pytest.raises(ManticoreError):
        hybrid(IDS[:, 9:] + 97, past_key_values=cache)
    rest = hybrid(IDS[:, 9:], position_ids=torch.tensor([[9, 10]]), past_key_values=cache).logits
    torch.testing.assert_close(rest, before[:, 9:], atol=1e-5, rtol=0)
    assert torch.equal(hybrid(IDS).logits, before)


@torch.no_grad()
def test_a_cache_that_is_given_is_read_and_one_that_is_reset_is_empty(hybrid: ManticoreForCausalLM) -> None:
    whole = hybrid(IDS).logits
    cache = hybrid(IDS[:, :10], use_cache=True).past_key_values
    output = hybrid(IDS[:, 10:], position_ids=torch.tensor([[10]]), past_key_values=cache)
    torch.testing.assert_close(output.logits, whole[:, 10:], atol=1e-5, rtol=0)
    assert output.past_key_values is cache
    cache.reset()
    assert torch.equal(hybrid(IDS, past_key_values=cache).logits, hybrid(IDS, use_cache=True).logits)


@torch.no_grad()
def test_masks_of_any_kind_of_number(hybrid: ManticoreForCausalLM, left_padding: dict[str, Tensor]) -> None:
    mask, positions = left_padding["attention_mask"], left_padding["position_ids"]
    expected = hybrid(IDS, attention_mask=mask, position_ids=positions).logits
    for same in (mask.bool(), mask.float(), mask.int()):
        assert torch.equal(hybrid(IDS, attention_mask=same, position_ids=positions).logits, expected)


@torch.no_grad()
def test_logits_of_chosen_positions(hybrid: ManticoreForCausalLM) -> None:
    whole = hybrid(IDS).logits
    for chosen in (torch.tensor([0, 5, 10]), torch.tensor([-1])):
        torch.testing.assert_close(hybrid(IDS, logits_to_keep=chosen).logits, whole[:, chosen], atol=1e-6, rtol=0)
    cache = hybrid(IDS[:, :4], use_cache=True).past_key_values
    positions = torch.arange(4, 11)[None]
    rest = hybrid(IDS[:, 4:], position_ids=positions, past_key_values=cache, logits_to_keep=torch.tensor([1, 6])).logits
    torch.testing.assert_close(rest, whole[:, [5, 10]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_continuation_has_a_loss_too(hybrid: ManticoreForCausalLM) -> None:
    cache = hybrid(IDS[:, :4], use_cache=True).past_key_values
    rest = hybrid(IDS[:, 4:], position_ids=torch.arange(4, 11)[None], past_key_values=cache, labels=IDS[:, 4:])
    labels = IDS.clone()
    labels[:, :5] = -100
    torch.testing.assert_close(rest.loss, hybrid(IDS, labels=labels).loss)


@torch.no_grad()
def test_a_tuple_instead_of_an_output(hybrid: ManticoreForCausalLM) -> None:
    output = hybrid(IDS, labels=IDS, use_cache=True)
    loss, logits, cache = hybrid(IDS, labels=IDS, use_cache=True, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert cache.get_seq_length() == 11
    hybrid.config.return_dict = False
    try:
        output_as_tuple = hybrid(IDS, use_cache=True)
        assert isinstance(output_as_tuple, tuple)
        assert torch.equal(output_as_tuple[0], output.logits)
    finally:
        hybrid.config.return_dict = True


@torch.no_grad()
def test_hidden_states_are_what_enters_and_leaves_each_block(build: Build, parents: list[Any]) -> None:
    supernet = build()
    with pytest.raises(ManticoreError, match="a supernet has several of different widths in every block"):
        supernet(IDS, output_hidden_states=True)
    alone = manticore.discretize(supernet, [0, 0, 0])
    states = alone(IDS, output_hidden_states=True).hidden_states
    own = parents[0](input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    edges = alone.config.boundaries[0]
    # transformers gives the last one after the final norm
    for state, edge in zip(states[:-1], edges):
        assert torch.equal(state, own[edge])
    assert torch.equal(parents[0].transformer.ln_f(states[-1]), own[-1])
    path = manticore.discretize(supernet, [0, 1, 1])
    assert [state.shape[-1] for state in path(IDS, output_hidden_states=True).hidden_states] == [32, 24, 24, 24]
    # a continuation of several tokens, which this family takes one by one
    cache = path(IDS[:, :4], use_cache=True).past_key_values
    rest = path(
        IDS[:, 4:], position_ids=torch.arange(4, 11)[None], past_key_values=cache, output_hidden_states=True
    ).hidden_states
    for piece, whole in zip(rest, path(IDS, output_hidden_states=True).hidden_states):
        torch.testing.assert_close(piece, whole[:, 4:], atol=1e-5, rtol=0)
