"""Splits of sequences with a class each, out of a source of rows, stored once and by content.

The Long Range Arena, mails and images in MNIST's format share this: one cache, one rule for what a stored file is known
by, one way to say that a split has too few examples.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from tqdm.auto import tqdm

from manticore.cache import file_digest
from manticore.errors import ManticoreError, told
from manticore.tasks.stored_rows import stored_rows

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

Rows = Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Where the rows of the splits come from."""

    origin: Any
    """What they depend on, as JSON can hold it."""
    rows: Mapping[str, Callable[..., Rows]]
    """Split → the function that makes its rows, one after the other; in pieces: those from ``start`` on."""
    endless: bool = False
    """Generated: the rows never end."""
    piece: int | None = None
    """Rows of a file in the cache, where making them takes so long that what is done must survive a kill."""


def load_splits(
    title: str,
    source: Source,
    wanted: Mapping[str, int | None],
    published: Mapping[str, int | None],
    dtype: str,
    sequences: int = 1,
) -> DatasetDict:
    """``train``, ``validation`` and ``test`` with the columns ``input_ids`` and ``label``, from the cache or made.

    Args:
        title: of the task, for messages; its part before a slash is the folder of the cache.
        source: of the rows.
        wanted: split → its first examples only; None: all, or as many as are published where rows never end.
        published: split → how many there should be; None where that is not known.
        dtype: of the ids.
        sequences: documents of an example; the second one's ids are ``input_ids_2``.

    Raises:
        ManticoreError: a split is empty or has fewer examples than are wanted.
    """
    features = Features({column: List(Value(dtype)) for column in ("input_ids", "input_ids_2")[:sequences]})
    features["label"] = Value("int64")
    data = DatasetDict()
    for split in SPLITS:
        count, expected = wanted[split], published[split]
        limit = expected if count is None and source.endless else count
        data[split] = _stored(title, split, source, limit, features)
        if count is not None and len(data[split]) < count:
            raise ManticoreError(
                f"{title}: {split} has too few examples (got {len(data[split])}, expected {count}). "
                f"Fix: num_{split}={len(data[split])}, or leave it out for all"
            )
        if len(data[split]) == 0:
            raise ManticoreError(f"{title}: {split} is empty. Fix: give the files whole")
        if count is None and expected is not None and len(data[split]) != expected:
            logger.warning("%s: %s has %d examples, published are %d", title, split, len(data[split]), expected)
    return data


def _stored(title: str, split: str, source: Source, limit: int | None, features: Features) -> Dataset:
    """The first ``limit`` rows of a split from the cache, made where it does not hold them."""
    folder, _, name = title.rpartition("/")
    where = partial(stored_rows, folder or name, f"{name}-{split}")
    content = {"format": 1, "origin": source.origin, "split": split}
    make = source.rows[split]
    if source.piece is None or limit is None:
        content["limit"] = limit
        return where(content, features, partial(_first, make, limit))
    pieces = []
    # what takes less than two seconds shows no bar
    with tqdm(total=limit, desc=f"{name} {split}", unit="image", delay=2) as bar:
        for start in range(0, limit, source.piece):
            count = min(source.piece, limit - start)
            content |= {"start": start, "limit": count}
            rows = partial(_counted, partial(make, start), count, bar)
            pieces.append(where(content, features, rows))
            bar.update(start + count - bar.n)
    return concatenate_datasets(pieces)


def _counted(rows: Callable[[], Rows], limit: int, bar: tqdm) -> Rows:
    for row in islice(rows(), limit):
        yield row
        bar.update()


def _first(rows: Callable[[], Rows], limit: int | None) -> Rows:
    return islice(rows(), limit)


def files_digest(paths: Iterable[Path], title: str = "lra") -> str:
    """What tells one state of the files from another: sizes and times can stay the same where a content has changed.

    Raises:
        ManticoreError: one cannot be read.
    """
    whole = hashlib.sha256()
    for path in paths:
        with told(title, f"{path} cannot be read", "give files that you may read", OSError):
            whole.update(f"{path.name} {file_digest(path)} ".encode(errors="surrogateescape"))
    return whole.hexdigest()


def last_tenth_held_out(rows: Callable[[], Rows], count: int) -> dict[str, Callable[[], Rows]]:
    """``train`` and ``validation`` of ``count`` training rows: the last tenth, in their order, is held out."""
    boundary = count - count // 10
    return {"train": lambda: islice(rows(), boundary), "validation": lambda: islice(rows(), boundary, None)}
