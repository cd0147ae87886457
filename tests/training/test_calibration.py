"""Calibration text: what is read, packed and held out."""

import copy

import pytest
import torch
from datasets import Dataset
from tiny_aligned import hybrid_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import manticore
from manticore.tasks.text import split_documents
from manticore.training.calibration import calibration_packs


@pytest.fixture(scope="module")
def tokenizer():
    """One token per character; line ends and blanks included."""
    characters = "\n abcdefghijklmnopqrstuvwxyz.,0123456789"
    vocabulary = {"<eos>": 0} | {character: i + 1 for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


def documents(count=60):
    return [f"document {i} says {'abc' * (i % 7)}, and then {i * i} more.\n" * 3 for i in range(count)]


def test_text_is_packed_and_what_the_text_task_holds_out_is_not_read(tokenizer):
    texts = documents()
    fit, held = calibration_packs(texts, tokens=2048, holdout=0.2, length=16, seed=0, tokenizer=tokenizer)
    assert (fit.tokens, held.tokens) == (102 * 16, 26 * 16)
    stream = tokenizer.decode(torch.cat([fit.input_ids, held.input_ids]).flatten())
    splits = split_documents(texts)
    read = stream.split("<eos>")
    assert len(read) > 10
    allowed = set(splits["train"])
    assert all(document in allowed for document in read[:-1])
    # one stream: what a position must predict is the token after it, across packs too
    assert torch.equal(fit.targets.flatten()[:-1], fit.input_ids.flatten()[1:])


def test_align_reads_text_with_the_hybrids_own_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("".join(documents()))
    hybrid = hybrid_of("gpt", "mamba", tokenizer=tokenizer)
    by_path = manticore.align(copy.deepcopy(hybrid), path, tokens=1024, length=16)
    by_list = manticore.align(hybrid, [path.read_text()], tokens=1024, length=16, tokenizer=tokenizer)
    assert by_path.translations == by_list.translations
    assert by_path.tokens + by_path.heldout_tokens == 1024


def test_long_documents_are_read_as_far_as_needed(tokenizer):
    """A first guess of characters that is too low is corrected, and no more tokens come than were asked for."""
    texts = ["0123456789" * 3000]
    fit, held = calibration_packs(texts, tokens=20000, holdout=0.1, length=100, seed=0, tokenizer=tokenizer)
    assert len(fit) + len(held) == 200


def test_less_text_than_asked_for_is_said(tokenizer, caplog):
    calibration_packs(documents(10), tokens=10**6, holdout=0.1, length=16, seed=0, tokenizer=tokenizer)
    assert "of the 1000000 tokens asked for" in caplog.text


def test_rows_are_drawn_without_replacement_and_held_out_rows_are_others():
    data = Dataset.from_dict({"input_ids": torch.arange(61 * 4).view(61, 4).tolist()})
    fit, held = calibration_packs(data, tokens=10**6, holdout=0.3, length=0, seed=3, tokenizer=None)
    rows = torch.cat([fit.input_ids[:, 0], held.input_ids[:, 0]])
    assert len(rows.unique()) == len(rows) == 61
    assert len(held) == 18
    other, _ = calibration_packs(data, tokens=10**6, holdout=0.3, length=0, seed=4, tokenizer=None)
    assert not torch.equal(fit.input_ids, other.input_ids)
