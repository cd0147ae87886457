"""A re-embedded component holds the rows it had, where the kept tokenizer's tokens are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CODE, LETTERS, PROSE, WORDS, byte_level, with_prefixes
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.tiny_families import tiny_model
from manticore.components.reembedding import rearranged, reembed
from manticore.components.token_bytes import TokenBytes
from manticore.components.token_matching import Matching, match_tokens
from manticore.errors import ManticoreError

# tied; untied; embeddings narrower than the layers; a bias in the head; positions that know the padding token; tied and
# scaled inside the embedding; state-space
FAMILIES = ("gpt2", "gpt_neox", "opt", "gptj", "xglm", "gemma2", "mamba")


@pytest.fixture(scope="module")
def kept() -> PreTrainedTokenizerFast:
    return byte_level(CODE)


@pytest.fixture(scope="module")
def other() -> PreTrainedTokenizerFast:
    return byte_level(PROSE)


def matching_of(kept: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> Matching:
    return match_tokens(TokenBytes(kept), TokenBytes(other))


def expected_row(table: Tensor, pieces: tuple[int, ...], known: int) -> Tensor:
    if not pieces:
        return table[:known].float().mean(0).to(table.dtype)
    total = table[pieces[0]].float()
    for piece in pieces[1:]:
        total = total + table[piece].float()
    return table[pieces[0]] if len(pieces) == 1 else (total / len(pieces)).to(table.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_row_is_what_it_should_be(
    family: str, dtype: torch.dtype, kept: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # padded beyond its tokenizer, as tables are
    model = tiny_model(family, vocab_size=len(other) + 3, eos_token_id=other.eos_token_id).to(dtype)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    matching = matching_of(kept, other)
    assert min(matching.counts["exact"], matching.counts["pieces"]) > 10
    tables = {id(model.get_input_embeddings().weight)} | {id(p) for p in model.get_output_embeddings().parameters()}
    tables_by_name = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in tables}
    model.config.name_or_path = "where/it/came/from"
    reembed(model, matching, kept)
    # what looks for a tokenizer there would find the other one
    assert not model.config.name_or_path

    for name, value in model.state_dict().items():
        if name not in tables_by_name:
            assert torch.equal(value, before[name]), name
            continue
        assert value.shape[0] == len(kept)
        for index, pieces in enumerate(matching.sources):
            assert torch.equal(value[index], expected_row(before[name], pieces, len(other))), (name, index)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.vocab_size == len(kept)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (0, 1)

    ids = torch.arange(12)[None]
    logits = model(input_ids=ids, use_cache=False).logits
    assert logits.shape == (1, 12, len(kept))
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(input_ids=ids, use_cache=False).logits, logits)


def test_a_token_without_a_match_gets_the_mean_of_all_tokens(kept: PreTrainedTokenizerFast) -> None:
    prefixes = with_prefixes([*LETTERS, *WORDS])
    matching = matching_of(kept, prefixes)
    table = torch.randn(len(prefixes) + 5, 6)
    row = rearranged(table, matching)[kept.get_vocab()["~"]]
    assert torch.equal(row, table[: len(prefixes)].mean(0))


@settings(max_examples=15, deadline=None)
@given(order=st.permutations([*LETTERS, *WORDS]), family=st.sampled_from(["gpt2", "mamba"]))
@torch.no_grad()
def test_for_an_equal_vocabulary_in_another_order_the_logits_are_permuted(order: list[str], family: str) -> None:
    own, kept = with_prefixes([*LETTERS, *WORDS]), with_prefixes(order)
    model = tiny_model(family, vocab_size=len(own))
    ids = torch.tensor([own("the best of it, then").input_ids])
    before = model(input_ids=ids, use_cache=False).logits
    reembed(model, matching_of(kept, own), kept)
    names = kept.convert_ids_to_tokens(range(len(kept)))
    after = model(input_ids=torch.tensor([kept("the best of it, then").input_ids]), use_cache=False).logits
    torch.testing.assert_close(after, before[..., own.convert_tokens_to_ids(names)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_special_ids_follow_where_there_were_some(family: str, kept: PreTrainedTokenizerFast) -> None:
    other = byte_level(PROSE)
    for padding in (None, 2):
        model = tiny_model(family, vocab_size=len(other), pad_token_id=padding)
        model.config.eos_token_id = [other.eos_token_id, other.get_vocab()["e"]]
        reembed(model, matching_of(kept, other), kept)
        assert model.config.eos_token_id == [kept.eos_token_id, kept.get_vocab()["e"]]
        assert model.config.pad_token_id == (None if padding is None else kept.pad_token_id)
        assert model.get_input_embeddings().padding_idx == model.config.pad_token_id


def test_frozen_tables_stay_frozen(kept: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> None:
    for trains in (False, True):
        model = tiny_model("gptj", vocab_size=len(other)).requires_grad_(trains)
        reembed(model, matching_of(kept, other), kept)
        assert {parameter.requires_grad for parameter in model.parameters()} == {trains}


def test_impossible_tables_are_refused(kept: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> None:
    matching = matching_of(kept, other)
    with pytest.raises(ManticoreError, match=f"gpt has {len(other) - 1} embedding rows for {len(other)} tokens"):
        reembed(tiny_model("gpt2", vocab_size=len(other) - 1), matching, kept, "gpt")
    model = tiny_model("gpt2", vocab_size=len(other))
    model.set_output_embeddings(nn.Identity())
    with pytest.raises(
        ManticoreError, match=r"has a Embedding and a Identity.* Fix: keep the tokenizer of this component"
    ):
        reembed(model, matching, kept)
