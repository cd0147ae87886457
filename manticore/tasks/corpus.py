"""Reads text as documents: a file, a folder, a data set, strings, or a text that every machine has.

The default corpus, ``"stdlib"``, is the source of the running interpreter's standard library; ``"docstrings"`` is
English. Both are megabytes of real text, without a download.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, TypeAlias

import datasets
from datasets import Dataset

from manticore.errors import ManticoreError, told
from manticore.making import refuse_misfits
from manticore.option_types import Count, Wanted
from manticore.tasks.builtin_texts import READERS, decoded
from manticore.tasks.text_sources import STDLIB, TextSource, find_text, table_kind
from manticore.tasks.text_tables import column_documents, is_unicode, read_file, table_documents

logger = logging.getLogger(__name__)

Text: TypeAlias = str | Path | Sequence[str] | Dataset

Column = Annotated[str, Wanted("a name", "name a column")]


def read_corpus(
    source: Text = STDLIB, *, text_column: Column | None = None, max_bytes: Count | None = None
) -> list[str]:
    """The documents of ``source``, in a fixed order, empty ones left out.

    Args:
        source: ``"stdlib"`` or ``"docstrings"``; a file of plain text (one document), a table
            (``.jsonl``, ``.json``, ``.csv``, ``.tsv``,
            ``.parquet``: one document per row), either of them compressed; a folder, or a pattern with ``*``, of files
            of one of these kinds; ``"hf:ID"`` or ``"hf:ID:CONFIGURATION"``, the training split of a data set on the
            hub (``hf:`` may be left out where no such file exists); a list of strings; a data set.
        text_column: of a table or data set, the column that holds the documents; None takes the one called ``text``,
            or the only one that holds strings.
        max_bytes: stop after so many bytes of UTF-8; the last document is cut.

    Raises:
        ManticoreError: nothing there, nothing but white space, no text, a table without one clear column of text, or
            several splits.
    """
    refuse_misfits("corpus", read_corpus, {"max_bytes": max_bytes, "text_column": text_column})
    refuse_no_text(source)
    documents: Iterable[str]
    if isinstance(source, Dataset):
        name, documents = "the data set", column_documents(source, "the data set", text_column)
    elif isinstance(source, (str, Path)):
        name, documents = str(source), _read_named(source, text_column)
    else:
        _refuse_column("a list of strings", text_column)
        name, documents = "the list", _strings(source)
    limited = _limit(documents, max_bytes) if max_bytes is not None else documents
    kept = [document for document in limited if document.strip()]
    if not kept:
        raise ManticoreError(f"text {name}: empty, there is nothing to read. Fix: give a source that holds text")
    return kept


def refuse_no_text(source: object, stage: str | None = None) -> None:
    """Refuse several splits at once, streams, and what is not text at all.

    Raises:
        ManticoreError: it is one of these.
    """
    head, kind = f"{stage}: " if stage else "", type(source).__name__
    if isinstance(source, Mapping) or hasattr(source, "keys"):
        names = [str(name) for name in source.keys()]  # type: ignore[attr-defined]  # noqa: SIM118
        chosen = "train" if "train" in names or not names else names[0]
        raise ManticoreError(
            f"{head}text is a {kind} of {', '.join(names[:20]) or 'nothing'} (expected one split of it). "
            f"Fix: pass text[{chosen!r}]"
        )
    if isinstance(source, datasets.IterableDataset):
        raise ManticoreError(
            f"{head}text is a stream of rows. Fix: pass as many as you want, Dataset.from_list(list(text.take(1000)))"
        )
    if not isinstance(source, str | Path | Dataset | Iterable) or isinstance(source, bytes | bytearray):
        given = "None" if source is None else f"a {kind}"
        raise ManticoreError(
            f"{head}text is {given} (expected a file, a folder, a datasets id, strings or a data set). "
            "Fix: leave it out for the standard library's source"
        )


def _refuse_column(what: str, text_column: str | None) -> None:
    if text_column is not None:
        raise ManticoreError(f"text: {what} has no columns (got text_column={text_column!r}). Fix: leave it out")


def corpus_digest(documents: Iterable[str]) -> str:
    """The sha256 that stands for these documents in this order."""
    digest = hashlib.sha256()
    for document in documents:
        encoded = document.encode("utf-8")
        digest.update(f"{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.hexdigest()


def _read_named(source: str | Path, text_column: str | None) -> Iterable[str]:
    found = find_text(source)
    if not found.has_columns:
        _refuse_column(found.name, text_column)
    if found.hub is not None:
        return _hub(found.hub, text_column)
    if found.saved is not None:
        return _saved(found.saved, found.name, text_column)
    if found.name in READERS:
        return _builtin(found.name)
    with told(f"text {found.name}", "cannot be read", "check the path", OSError):
        return _files(found, text_column)


def _builtin(name: str) -> Iterable[str]:
    documents = READERS[name]()
    first = next(documents, None)
    if first is None:
        raise ManticoreError(f"text {name}: no Python sources are installed. Fix: give a file or a folder of text")
    return chain([first], documents)


def _files(source: TextSource, text_column: str | None) -> list[str]:
    documents, no_text = [], 0
    for path in source.files:
        name = str(path) if source.many else source.name
        if table_kind(path):
            documents += table_documents(path, name, text_column)
            continue
        text = decoded(read_file(path, name))
        if text is not None:
            documents.append(text)
        elif source.many:
            no_text += 1
        else:
            raise ManticoreError(f"text {name}: binary, or not UTF-8. Fix: give a text file, or convert it to UTF-8")
    if no_text and not documents:
        raise ManticoreError(f"text {source.name}: none of its {no_text} files is UTF-8 text. Fix: give text files")
    if no_text:
        many = len(source.files)
        logger.warning("text %s: %d of %d files are not UTF-8 text and were left out", source.name, no_text, many)
    return documents


def _hub(identifier: str, text_column: str | None) -> list[str]:
    name, _, configuration = identifier.partition(":")
    # datasets raises dozens of classes, its own and its dependencies'; each means that there is no such data here
    with told(f"text {identifier}", "no such file, folder or readable data set", "check the id, or go online"):
        rows = datasets.load_dataset(name, configuration or None, split="train")
    return column_documents(rows, identifier, text_column)


def _saved(folder: Path, name: str, text_column: str | None) -> list[str]:
    with told(f"text {name}", "a saved data set that cannot be read", "save it again"):
        rows = datasets.load_from_disk(str(folder))
    if not isinstance(rows, Dataset):
        names = list(rows)
        raise ManticoreError(
            f"text {name}: a data set with the splits {', '.join(map(str, names))} (expected one). "
            f"Fix: give one, {folder / str(names[0])}"
        )
    return column_documents(rows, name, text_column)


def _strings(source: Sequence[str]) -> list[str]:
    documents = list(source)
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise ManticoreError(f"text: item {index} is {type(document).__name__}. Fix: give strings only")
        if not is_unicode(document):
            raise ManticoreError(f"text: item {index} holds half characters (surrogates). Fix: decode it as UTF-8")
    if len(documents) > 1 and all(len(document) <= 1 for document in documents):
        raise ManticoreError(f"text: a list of {len(documents)} single characters. Fix: pass [text], not list(text)")
    return documents


def _limit(documents: Iterable[str], max_bytes: int) -> list[str]:
    kept, left = [], max_bytes
    for document in documents:
        encoded = document.encode("utf-8")
        # A character that is cut in two is dropped.
        kept.append(document if len(encoded) <= left else encoded[:left].decode("utf-8", errors="ignore"))
        left -= len(encoded)
        if left <= 0:
            break
    return kept
