"""Datasets written row by row into the cache folder and read from there through a memory map, never whole.

The name of a file stands for everything that its rows depend on and for its content, so a file that is there and
whole is the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter

from manticore.cache import Entry, cache_folder, content_key
from manticore.errors import ManticoreError


def stored_rows(
    kind: str, name: str, content: Any, features: Features, rows: Callable[[], Iterable[dict[str, Any]]]
) -> Dataset:
    """The dataset of ``rows()``, which is called only if the cache does not hold it.

    Args:
        kind: folder of the cache.
        name: beginning of the file's name.
        content: everything that the rows depend on, as JSON can hold it.
        features: the types of the columns.
        rows: makes the rows, in order.

    Raises:
        ManticoreError: a file that rows come from cannot be read, or the cache cannot be written.
    """
    columns = {column: str(feature) for column, feature in features.items()}
    key = content_key({"content": content, "columns": columns})
    entry = Entry(cache_folder(kind), f"{name}-{key}", ".arrow")
    try:
        path = entry.find()
        if path is None:
            with entry.aside() as aside:
                with ArrowWriter(path=str(aside), features=features) as writer:
                    for row in _read(name, rows):
                        writer.write(row)
                    writer.finalize()
                path = entry.keep(aside)
        return Dataset.from_file(str(path))
    except OSError as error:
        raise ManticoreError(
            f"{name}: cannot be stored in {entry.folder} ({error}). "
            "Fix: make room, or set MANTICORE_CACHE to another folder"
        ) from error


def _read(name: str, rows: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    try:
        yield from rows()
    except OSError as error:
        raise ManticoreError(f"{name}: cannot be read ({error}). Fix: give files that you may read") from error
