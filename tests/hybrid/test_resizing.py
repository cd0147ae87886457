"""Tokens added to a hybrid, or taken away: every component's table follows, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.hybrid.modeling import ManticoreForCausalLM

# untied with a bias in the head; tied; tied and scaled; state-space
FAMILIES = ("gptj", "gpt2", "gemma2", "mamba")


@pytest.fixture
def families() -> ManticoreForCausalLM:
    """A supernet of four families with 97 tokens."""
    return manticore.combine([tiny_model(family) for family in FAMILIES], num_blocks=2)


def tables(hybrid: ManticoreForCausalLM) -> dict[str, Tensor]:
    """Everything with a row per token, by name."""
    found = {}
    for name, parameter in hybrid.named_parameters(remove_duplicate=False):
        if any(part in name for part in ("wte", "embed_tokens", "embeddings", "lm_head")):
            found[name] = parameter
    return found


def reloaded(hybrid: ManticoreForCausalLM, folder: Path) -> ManticoreForCausalLM:
    hybrid.save_pretrained(folder)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return loaded


@pytest.mark.parametrize(("wanted", "multiple", "rows"), [(103, None, 103), (98, 8, 104), (None, 64, 128), (60, 1, 60)])
@torch.no_grad()
def test_every_table_is_resized_and_nothing_else(
    wanted: int | None, multiple: int | None, rows: int, families: ManticoreForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    ids = ids % 50
    before = {name: value.clone() for name, value in families.state_dict().items()}
    logits = families(ids).logits
    torch.manual_seed(0)
    returned = families.resize_token_embeddings(wanted, pad_to_multiple_of=multiple)

    assert returned is families.component(0).get_input_embeddings()
    assert families.config.vocab_size == rows
    assert [config.vocab_size for config in families.config.components] == [rows] * 4
    known = min(97, rows)
    names = set(tables(families))
    assert len(names) >= 8
    for name, value in families.state_dict().items():
        if name in names:
            assert value.shape == (rows, *before[name].shape[1:]), name
            assert torch.equal(value[:known], before[name][:known]), name
            assert value.isfinite().all()
        else:
            assert torch.equal(value, before[name]), name
    after = families(ids).logits
    assert after.shape[-1] == rows
    # one matrix product of another size may add in another order
    torch.testing.assert_close(after[..., :known], logits[..., :known], rtol=0, atol=1e-5)
    assert torch.equal(reloaded(families, tmp_path / "resized")(ids).logits, after)


def test_tied_tables_stay_tied(families: ManticoreForCausalLM, tmp_path: Path) -> None:
    families.resize_token_embeddings(101)
    for hybrid in (families, reloaded(families, tmp_path / "tied")):
        tied = [
            hybrid.component(k).get_input_embeddings().weight is hybrid.component(k).get_output_embeddings().weight
            for k in range(4)
        ]
        assert tied == [False, True, True, True]


def test_nothing_asked_is_nothing_done(families: ManticoreForCausalLM) -> None:
    before = {name: id(parameter) for name, parameter in families.named_parameters()}
    assert families.resize_token_embeddings() is families.component(0).get_input_embeddings()
    assert {name: id(parameter) for name, parameter in families.named_parameters()} == before


@pytest.mark.parametrize("rows", [60, 110])
@pytest.mark.parametrize("path", [[0, 1], [1, 3], [2, 2], [3, 0]])
@torch.no_grad()
def test_dropped_parts_stay_dropped(
    path: list[int], rows: int, families: ManticoreForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    ids = ids % 50
    small = manticore.discretize(families, path)
    names, logits = list(small.state_dict()), small(ids).logits
    torch.manual_seed(0)
    small.resize_token_embeddings(rows)
    assert list(small.state_dict()) == names
    after = small(ids).logits
    assert after.shape[-1] == rows
    known = min(rows, 97)
    torch.testing.assert_close(after[..., :known], logits[..., :known], rtol=0, atol=1e-5)
    loaded = reloaded(small, tmp_path / "small")
    assert list(loaded.state_dict()) == names
    assert torch.equal(loaded(ids).logits, after)


@torch.no_grad()
def test_classifiers_have_no_heads_to_resize(families: ManticoreForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    classifier = manticore.ManticoreForSequenceClassification.from_causal_lm(families, num_labels=3).eval()
    ids, names = ids % 50, list(classifier.state_dict())
    mask = torch.ones_like(ids)
    before = classifier(ids, mask).logits
    classifier.resize_token_embeddings(101)
    assert list(classifier.state_dict()) == names
    assert torch.equal(classifier(ids, mask).logits, before)
    classifier.save_pretrained(tmp_path)
    again = manticore.ManticoreForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.vocab_size == 101
    assert torch.equal(again(ids, mask).logits, before)


def test_frozen_tables_stay_frozen(families: ManticoreForCausalLM) -> None:
    for hybrid in (families, manticore.discretize(families, [0, 1])):
        hybrid.requires_grad_(False)
        hybrid.resize_token_embeddings(99)
        assert not any(parameter.requires_grad for parameter in hybrid.parameters())


def test_new_rows_train(families: ManticoreForCausalLM) -> None:
    families.resize_token_embeddings(99)
    ids = torch.tensor([[97, 98, 5, 97]])
    families(ids, labels=ids).loss.backward()
    for name, table in tables(families).items():
        assert table.grad is not None, name
        assert table.grad[97:].abs().sum() > 0, name


def test_tokens_added_as_everywhere_in_transformers(checkpoints: list[Path], tmp_path: Path) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2)
    tokenizer: PreTrainedTokenizerFast = copy.deepcopy(hybrid.tokenizer)
    known = len(tokenizer)
    assert tokenizer.add_tokens(["<call>", "<|end|>"]) == 2
    hybrid.resize_token_embeddings(len(tokenizer))
    hybrid.tokenizer = tokenizer
    # the second component's table was padded: its new tokens get rows like those of the first, not padding
    padding = AutoModelForCausalLM.from_pretrained(checkpoints[1]).get_input_embeddings().weight[known]
    assert not torch.equal(hybrid.component(1).get_input_embeddings().weight[known], padding)

    loaded = reloaded(hybrid, tmp_path / "added")
    assert loaded.tokenizer is not None
    assert len(loaded.tokenizer) == known + 2
    ids = torch.tensor([loaded.tokenizer("x<call>y").input_ids])
    assert known in ids[0].tolist()
    assert loaded.generate(ids, max_new_tokens=3, min_new_tokens=3).shape[1] == ids.shape[1] + 3


def test_a_tokenizer_with_too_many_tokens_is_let_go(checkpoints: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2)
    hybrid.resize_token_embeddings(100)
    assert hybrid.tokenizer is None
    assert "260 tokens, the hybrid now 100: let go" in caplog.text


@torch.no_grad()
def test_stacks_are_resized_by_transformers_own_method(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = manticore.StackConfig(layers=["mh-attention", "mamba"], vocab_size=20, hidden_size=32)
    stack = manticore.StackForCausalLM(config).eval()
    ids = torch.arange(12)[None]
    before = stack(ids).logits
    for rows in (26, 14):
        assert stack.resize_token_embeddings(rows) is stack.get_input_embeddings()
        logits = stack(ids).logits
        assert logits.shape[-1] == rows == stack.config.vocab_size
        torch.testing.assert_close(logits[..., :14], before[..., :14], rtol=0, atol=1e-5)
        stack.save_pretrained(tmp_path / str(rows))
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / str(rows))(ids).logits, logits)
