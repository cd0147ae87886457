"""Models with different tokenizers are never scored on the same tokens, unless these mean nothing to either: each reads
the text with its own, and bits per byte decide."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import CODE, PROSE, adding_bos, byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.experiments.models import own_tasks
from manticore.tasks.task import load_task
from manticore.tasks.text import text

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
    task = text(byte_level(CODE), source=CODE * 40, length=8)
    with pytest.raises(ManticoreError, match=r"gpt and mamba have different tokenizers, so mamba cannot read.* Fix:"):
        manticore.compare(folders, task, **SETTINGS)


def test_a_task_by_its_name_is_read_by_each_with_its_own(folders: list[Path]) -> None:
    task = load_task("text", tokenizer=byte_level(CODE), source=CODE * 40, length=8)
    table = manticore.compare(folders, task, **SETTINGS)
    assert (table.primary_metric, table.higher_is_better) == ("bits_per_byte", False)
    # averaging predictions of different tokens is nothing
    assert [row.model for row in table.rows] == ["gpt", "mamba"]
    assert "Tokenizers differ" in table.notes[0]
    for folder, untrained in zip(folders, table.untrained):
        own = AutoTokenizer.from_pretrained(folder)
        reads = load_task("text", tokenizer=own, source=CODE * 40, length=8)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert untrained.metrics == manticore.evaluate(model, reads, max_examples=2)
    assert all(row.mean == row.seeds[0]["metrics"]["bits_per_byte"] for row in table.rows)


def test_each_begins_as_its_own_tokenizer_does(folders: list[Path], tmp_path: Path) -> None:
    plain, adding = byte_level(CODE), adding_bos(byte_level(CODE))
    tasks, differ = own_tasks(
        load_task("text", tokenizer=plain, source=CODE * 40, length=8),
        {"plain": save("gpt_neo", plain, tmp_path / "p"), "adding": save("mamba", adding, tmp_path / "a")},
        None,
    )
    assert [tasks[name].bos for name in ("plain", "adding")] == ["", "<s>"]
    # <s> is one token more here: losses per token do not compare
    assert differ
    assert tasks["adding"].primary_metric == "bits_per_byte"


def test_reembedded_it_can_be_compared(folders: list[Path]) -> None:
    task = load_task("text", tokenizer=byte_level(CODE), source=CODE * 40, length=8)
    hybrid = manticore.combine(folders, num_blocks=2, tokenizer="gpt")
    table = manticore.compare({"gpt": folders[0], "mamba": hybrid.component(1)}, task, ensemble=False, **SETTINGS)
    assert [row.model for row in table.rows] == ["gpt", "mamba"]


def test_a_task_with_its_own_vocabulary_takes_them_all(folders: list[Path]) -> None:
    task = load_task("mad/in-context-recall", seq_len=16, num_train_examples=16, num_test_examples=8)
    assert len(manticore.compare(folders, task, ensemble=False, **SETTINGS).rows) == 2
