"""Models with different tokenizers are never scored on the same tokens, unless these mean nothing to either."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import CODE, PROSE, byte_level
from transformers import PreTrainedTokenizerFast

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.tasks.task import load_task

SETTINGS = {"seeds": [0], "batch_size": 4, "budget_flops": 13_000_000, "test_examples": 2}


def save(family: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    tiny_model(family, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("parents")
    return [save("gpt_neo", byte_level(CODE), root / "gpt"), save("mamba", byte_level(PROSE), root / "mamba")]


def test_a_text_in_the_tokens_of_one_is_refused_for_the_other(folders: list[Path]) -> None:
    task = load_task("text", tokenizer=byte_level(CODE), source=CODE * 40, length=8)
    with pytest.raises(ManticoreError, match=r"gpt and mamba have different tokenizers, so mamba cannot read.* Fix:"):
        manticore.compare(folders, task, **SETTINGS)


def test_reembedded_it_can_be_compared(folders: list[Path]) -> None:
    task = load_task("text", tokenizer=byte_level(CODE), source=CODE * 40, length=8)
    hybrid = manticore.combine(folders, num_blocks=2, tokenizer="gpt")
    table = manticore.compare({"gpt": folders[0], "mamba": hybrid.component(1)}, task, ensemble=False, **SETTINGS)
    assert [row.model for row in table.rows] == ["gpt", "mamba"]


def test_a_task_with_its_own_vocabulary_takes_them_all(folders: list[Path]) -> None:
    task = load_task("mad/in-context-recall", seq_len=16, num_train_examples=16, num_test_examples=8)
    assert len(manticore.compare(folders, task, ensemble=False, **SETTINGS).rows) == 2
