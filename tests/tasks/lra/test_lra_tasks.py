"""The Long Range Arena and its small relatives as tasks: classes, padding, names that say what departs from it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from manticore.errors import ManticoreError
from manticore.registry import entries
from manticore.schema.options import options_of
from manticore.tasks.lra import listops
from manticore.tasks.lra.examples import ARENAS, SPLITS
from manticore.tasks.task import load_task

SMALL = {"min_length": 8, "max_length": 30, "num_train": 40, "num_validation": 10, "num_test": 12}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))


def test_all_six_are_tasks() -> None:
    assert {f"lra/{name}" for name in ARENAS} <= set(entries("task"))


def test_listops_by_the_official_rules() -> None:
    task = load_task("lra/listops", num_train=4, num_validation=2, num_test=2)
    assert (task.name, task.num_classes, task.vocab_size, task.pad_token_id) == ("lra/listops", 10, 17, 0)
    assert all(501 <= len(ids) <= 1999 for split in SPLITS for ids in task.data[split]["input_ids"])
    assert task.primary_metric == "accuracy"
    assert task.chance == pytest.approx(0.1)


def test_short_listops_has_short_trees_right_values_and_a_name_of_its_own() -> None:
    task = load_task("listops-short", **SMALL)
    assert task.name == "listops-short (8 to 30 symbols)"
    assert task.length == 30
    assert [len(task.data[split]) for split in SPLITS] == [40, 10, 12]
    seen = set()
    for split in SPLITS:
        for row in task.data[split]:
            assert 8 <= len(row["input_ids"]) <= 30
            assert row["label"] == value([listops.SYMBOLS[i] for i in row["input_ids"]])
            seen.add(tuple(row["input_ids"]))
    # short trees repeat now and then
    assert len(seen) > 50
    assert load_task("listops-short", **SMALL, data_seed=1).data["test"]["input_ids"] != task.data["test"]["input_ids"]


def value(symbols: list[str]) -> int:
    """The value by a stack, not by the generator."""
    stack: list = []
    for symbol in symbols:
        if symbol != listops.CLOSE:
            stack.append(symbol if symbol in listops.OPERATORS else int(symbol))
            continue
        start = max(i for i, entry in enumerate(stack) if isinstance(entry, str))
        arguments = stack[start + 1 :]
        kinds = {"[MIN": min, "[MAX": max, "[MED": lambda a: int(np.median(a)), "[SM": lambda a: sum(a) % 10}
        stack[start:] = [kinds[stack[start]](arguments)]
    (left,) = stack
    return left


def test_digits_are_named_a_proxy_and_have_no_padding() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
    task = load_task("digits-64")
    assert task.name == "digits-64 (proxy)"
    assert (task.length, task.vocab_size, task.num_classes, task.pad_token_id) == (64, 17, 10, None)


def test_retrieval_has_two_documents(tmp_path: Path) -> None:
    folder = tmp_path / "tsv_data"
    folder.mkdir()
    for part in ("train", "eval", "test"):
        (folder / f"new_aan_pairs.{part}.tsv").write_text("1.0\ta\tb\tone text\tanother\n0.0\tc\td\tx\ty\n")
    task = load_task("lra/retrieval", data_dir=str(tmp_path))
    assert (task.documents, task.num_classes, task.length, task.tokens_per_example) == (2, 2, 4000, 8000)
    assert task.data["train"].column_names == ["input_ids", "input_ids_2", "label"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_length": 40}, "lengths from 40 to 30"),
        ({"max_length": 3000}, "lengths from 8 to 3000"),
        ({"min_length": 1, "max_length": 3}, "max_length is 3"),
        ({"num_train": 0}, "num_train is 0"),
        ({"data_seed": -1}, "data_seed is -1"),
    ],
)
def test_wrong_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ManticoreError, match=rf"^(task ')?listops-short'?: {re.escape(message)}[^\n]*$"):
        load_task("listops-short", **{**SMALL, **options})


def test_a_wrong_seed_is_named_as_the_task_names_it() -> None:
    with pytest.raises(ManticoreError, match=r"^task 'lra/pathfinder32': data_seed is -1 [^\n]*Fix: give 0 or more$"):
        load_task("lra/pathfinder32", data_seed=-1, num_train=1, num_validation=1, num_test=1)


@pytest.mark.parametrize("name", [name for name in entries("task") if name.startswith("lra/")])
def test_every_option_has_a_help(name: str) -> None:
    options = options_of("task", name)
    assert options
    assert all(option.help and option.annotation for option in options.values())
