"""What a model is to write: last answers of tasks, ends of lines, keys hidden in a text of a length."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from copying_task import copying_task
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import PROSE, adding_bos, byte_level

from manticore.errors import ManticoreError
from manticore.tasks.answers import LINE_ENDING, answers, line_ending, needles
from manticore.tasks.task import load_task

FEW = {"num_train_examples": 4, "num_validation_examples": 4, "num_test_examples": 4}


def test_the_last_run_of_what_a_task_asks_is_written_after_all_before_it():
    copied = load_task("mad/selective-copying", seq_len=32, num_tokens_to_copy=4, **FEW)
    rows = copied.data["test"].with_format("torch")
    for answer, row in zip(answers(copied, "test"), rows, strict=True):
        assert answer.tokens == row["targets"][-4:].tolist()
        assert torch.equal(answer.prompt, row["input_ids"][:-3])
    recalled = load_task("mad/in-context-recall", seq_len=16, **FEW)
    rows = recalled.data["test"].with_format("torch")
    for answer, row in zip(answers(recalled, "test"), rows, strict=True):
        at = len(answer.prompt) - 1
        assert answer.tokens == [row["targets"][at]]
        assert (row["targets"][at + 1 :] == -100).all()


def test_a_task_that_is_not_written_is_refused(tmp_path):
    task = copying_task()
    with pytest.raises(ManticoreError, match="made for auto-encoders, so that nothing is written"):
        next(answers(replace(task, backbone="autoencoder"), "test"))
    with pytest.raises(ManticoreError, match="copying is text, and there is no tokenizer"):
        next(answers(replace(task, vocab_size=None), "test"))


def test_a_text_has_its_last_whole_line_ended():
    ends = torch.zeros(10, dtype=torch.bool)
    ends[9] = True
    ids = torch.tensor([1] * 32 + [9, 2, 3, 4, 5, 6, 7, 9, 8, 8])
    (answer,) = line_ending(ids, ends)
    assert (answer.prompt.tolist(), answer.tokens) == ([1] * 32 + [9, 2, 3, 4, 5], [6, 7, 9])
    assert len(answer.tokens) == LINE_ENDING
    assert not list(line_ending(ids[2:], ends)), "too little before it"
    assert not list(line_ending(torch.tensor([1] * 40 + [9, 2, 3, 9]), ends)), "a line of two tokens"


@settings(max_examples=20, deadline=None)
@given(length=st.integers(100, 700), count=st.integers(1, 9), bos=st.booleans())
def test_needles_have_their_length_and_lie_at_all_depths(length, count, bos):
    tokenizer = TOKENIZERS[bos]
    filler = tokenizer(PROSE[0] * 3, add_special_tokens=False).input_ids
    found = needles(tokenizer, filler, length, count)
    assert [len(needle.prompt) for needle in found] == [length] * count
    for needle in found:
        text = tokenizer.decode(needle.prompt.tolist())
        assert text.count(f" The pass key is {needle.key}. Remember it.") == 1
        assert text.endswith("\nWhat is the pass key? The pass key is")
        assert text.startswith("<s>") == bos
    places = [tokenizer.decode(needle.prompt.tolist()).index(needle.key) for needle in found]
    assert all(before < after for before, after in itertools.pairwise(places)) or length < 200
    again = needles(tokenizer, filler, length, count)
    assert [needle.key for needle in again] == [needle.key for needle in found]


TOKENIZERS = {False: byte_level(PROSE), True: adding_bos(byte_level(PROSE))}


def test_too_few_tokens_for_a_key_are_refused():
    with pytest.raises(ManticoreError, match=r"^generate: 20 tokens do not hold a hidden key and its ques"):
        needles(TOKENIZERS[False], [1, 2, 3], 20, 2)
