"""Text and Retrieval of the Long Range Arena: documents as bytes, id = byte + 1, 0 for padding.

Source: Tay et al. 2020, arXiv 2011.04006: at most 4,000 bytes of a document, its beginning. Text is the sentiment of
film reviews (IMDB); Retrieval asks whether one paper cites another (ACL Anthology Network).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from manticore.errors import ManticoreError
from manticore.tasks.lra.records import label_of, refuse_missing

VOCABULARY = 257
LENGTH = 4000
HELD_OUT = 0.1
"""Share of the training reviews that becomes the validation split: the benchmark validates on its test split."""

_SENTIMENTS = ("neg", "pos")
_NOT_THE_HUB = "pass data_dir, the folder aclImdb"
_PAIRS = "give the release's new_aan_pairs files"
_RETRIEVAL_COLUMNS = ("label", "id1", "id2", "text1", "text2")

Row = dict[str, Any]
Review = tuple[bytes, int]


def encode(document: bytes, length: int = LENGTH) -> np.ndarray:
    """Ids of the first bytes."""
    return np.frombuffer(document[:length], np.uint8).astype(np.uint16) + 1


def review_folder(folder: Path, split: str) -> list[Review]:
    """The reviews of the folder ``train`` or ``test`` of aclImdb, with 0 for negative and 1 for positive.

    Raises:
        ManticoreError: a folder is missing or holds no reviews.
    """
    reviews: list[Review] = []
    for label, sentiment in enumerate(_SENTIMENTS):
        below = folder / split / sentiment
        paths = sorted(below.glob("*.txt"))
        if not paths:
            raise ManticoreError(
                f"lra/text {below}: no reviews (expected files *.txt). Fix: give the folder aclImdb, "
                "with train/neg, train/pos, test/neg and test/pos"
            )
        reviews.extend((path.read_bytes(), label) for path in paths)
    return reviews


def reviews_of_rows(rows: Iterable[Row], where: str) -> list[Review]:
    """The reviews of a data set with the columns ``text`` and ``label``.

    Raises:
        ManticoreError: a column is missing, or a label is not 0 or 1.
    """
    reviews = []
    for index, row in enumerate(rows):
        refuse_missing(("text", "label"), row, where, _NOT_THE_HUB)
        label = label_of(row["label"], 2, f"{where}, row {index}", _NOT_THE_HUB)
        reviews.append((row["text"].encode("utf-8"), label))
    return reviews


def review_splits(train: list[Review], test: list[Review]) -> dict[str, list[Review]]:
    """``train``, ``validation`` and ``test``, each in an order that depends on the reviews alone.

    Sources come sorted by label. Here they are sorted by hash, and the last training reviews are held out, so equal
    reviews stay together and every source gives the same splits.
    """
    kept, held_out = last_held_out(by_hash(train))
    return {"train": kept, "validation": held_out, "test": by_hash(test)}


def last_held_out(ordered: list[Review], count: int | None = None) -> tuple[list[Review], list[Review]]:
    """All but the last ``count`` documents (None: a tenth) and those, equal ones together on the second side."""
    boundary = len(ordered) - (round(len(ordered) * HELD_OUT) if count is None else count)
    while 0 < boundary < len(ordered) and ordered[boundary][0] == ordered[boundary - 1][0]:
        boundary -= 1
    return ordered[:boundary], ordered[boundary:]


def digest(splits: dict[str, list[Review]]) -> str:
    """The sha256 that stands for the reviews and their order."""
    content = hashlib.sha256()
    for split, reviews in splits.items():
        content.update(f"{split} {len(reviews)} ".encode())
        for review, label in reviews:
            content.update(f"{label} {len(review)} ".encode())
            content.update(review)
    return content.hexdigest()


def review_rows(reviews: Iterable[Review]) -> Iterator[Row]:
    """Rows with ``input_ids`` and ``label``."""
    for review, label in reviews:
        yield {"input_ids": encode(review), "label": label}


def retrieval_rows(path: Path) -> Iterator[Row]:
    """Rows with ``input_ids``, ``input_ids_2`` and ``label`` of a tab-separated file without header or quotes.

    Raises:
        ManticoreError: a line without its five fields, or a label that is not 0 or 1.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            where = f"lra/retrieval {path}, line {number}"
            if len(fields) != len(_RETRIEVAL_COLUMNS):
                ids_only = " (it holds ids only, without the texts)" if len(fields) == 3 else ""
                raise ManticoreError(
                    f"{where}: {len(fields)} columns{ids_only} (expected {len(_RETRIEVAL_COLUMNS)}: "
                    f"{', '.join(_RETRIEVAL_COLUMNS)}). Fix: {_PAIRS}"
                )
            label = label_of(fields[0], 2, where, _PAIRS)
            yield {"input_ids": encode(fields[3]), "input_ids_2": encode(fields[4]), "label": label}


def by_hash(reviews: list[Review]) -> list[Review]:
    """In an order that depends on their content alone."""
    return sorted(reviews, key=lambda review: (hashlib.sha256(review[0]).digest(), review[1]))
