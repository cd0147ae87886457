"""Reads text as documents: a file, a folder, a data set, strings, or Python's own standard library.

The default corpus, ``"stdlib"``, is the source of the running interpreter's standard library: megabytes of real text
that every machine has, without a download.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
from datasets import Dataset

from manticore.errors import ManticoreError

logger = logging.getLogger(__name__)

STDLIB = "stdlib"
_NO_SOURCES = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_DATASET_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_corpus(source: str | Path | Sequence[str] | Dataset = STDLIB, *, max_bytes: int | None = None) -> list[str]:
    """The documents of ``source``, in a fixed order, empty ones left out.

    Args:
        source: ``"stdlib"``; a file (one document) or a folder (one document per text file below it); ``"hf:ID"`` or
            ``"hf:ID:CONFIGURATION"``, the training split of a data set on the hub (``hf:`` may be left out where no
            such file exists); a list of strings; a data set with a column of text.
        max_bytes: stop after so many bytes of UTF-8; the last document is cut.

    Raises:
        ManticoreError: nothing there, nothing but white space, or no text.
    """
    if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1):
        raise ManticoreError(f"corpus: max_bytes is {max_bytes!r} (expected a whole number). Fix: give 1 or more")
    if isinstance(source, Dataset):
        name, documents = "the data set", _column(source, "the data set")
    elif isinstance(source, (str, Path)):
        name, documents = str(source), _read_named(source)
    else:
        name, documents = "the list", _strings(source)
    documents = _limit(documents, max_bytes) if max_bytes is not None else documents
    kept = [document for document in documents if document.strip()]
    if not kept:
        raise ManticoreError(f"text {name}: empty, there is nothing to read. Fix: give a source that holds text")
    return kept


def corpus_digest(documents: Iterable[str]) -> str:
    """The sha256 that stands for these documents in this order."""
    digest = hashlib.sha256()
    for document in documents:
        encoded = document.encode("utf-8")
        digest.update(f"{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.hexdigest()


def _read_named(source: str | Path) -> list[str]:
    name = str(source)
    if name == STDLIB:
        return _standard_library()
    if name.startswith("hf:"):
        return _hub(name.removeprefix("hf:"))
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return [_file(path)]
    except OSError as error:
        raise ManticoreError(f"text {name}: cannot be read ({error.strerror or error}). Fix: check the path") from error
    # "data/notes.txt" in an existing folder is a misspelt file, "owner/name" is not.
    is_id = isinstance(source, str) and "/" in name and _DATASET_ID.fullmatch(name) and not path.parent.exists()
    if is_id:
        return _hub(name)
    raise ManticoreError(
        f"text {name}: no such file or folder. Fix: check the path, or write hf:{name} if it is a data set on the hub"
    )


def _standard_library() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(root.rglob("*.py")):
        if _NO_SOURCES.isdisjoint(path.relative_to(root).parts):
            text = _decode(path.read_bytes())
            if text is not None:
                documents.append(text)
    if not documents:
        raise ManticoreError(f"text stdlib: no Python sources in {root}. Fix: give a file or a folder of text")
    return documents


def _folder(root: Path) -> list[str]:
    documents, no_text = [], 0
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    for path in paths:
        text = _decode(path.read_bytes())
        if text is None:
            no_text += 1
        else:
            documents.append(text)
    if no_text and not documents:
        raise ManticoreError(
            f"text {root}: none of its {no_text} files is UTF-8 text. Fix: give a folder of text files"
        )
    if no_text:
        logger.warning("text %s: %d of %d files are not UTF-8 text and were left out", root, no_text, len(paths))
    return documents


def _file(path: Path) -> str:
    text = _decode(path.read_bytes())
    if text is None:
        raise ManticoreError(f"text {path}: binary, or not UTF-8. Fix: give a text file, or convert it to UTF-8")
    return text


def _decode(content: bytes) -> str | None:
    """The text, or None for what is not UTF-8 text; bytes stay as they are, line ends included."""
    if b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _hub(identifier: str) -> list[str]:
    name, _, configuration = identifier.partition(":")
    try:
        rows = datasets.load_dataset(name, configuration or None, split="train")
    except Exception as error:
        # datasets raises dozens of classes, its own and its dependencies'; each means that there is no such data here.
        reason = " ".join(str(error).split())[:200]
        raise ManticoreError(
            f"text {identifier}: no such file, folder or readable data set ({type(error).__name__}: {reason}). "
            "Fix: check the id, or go online"
        ) from error
    return _column(rows, identifier)


def _column(rows: Dataset, name: str) -> list[str]:
    columns = [
        column
        for column, feature in rows.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if "text" in columns:
        column = "text"
    elif len(columns) == 1:
        column = columns[0]
    else:
        found = ", ".join(rows.column_names) or "none"
        raise ManticoreError(f"text {name}: no column called text (got {found}). Fix: rename the column that holds it")
    return [document or "" for document in rows.with_format(None)[column]]


def _strings(source: Sequence[str]) -> list[str]:
    documents = list(source)
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise ManticoreError(f"text: item {index} is {type(document).__name__}. Fix: give strings only")
        if not _is_unicode(document):
            raise ManticoreError(f"text: item {index} holds half characters (surrogates). Fix: decode it as UTF-8")
    if len(documents) > 1 and all(len(document) <= 1 for document in documents):
        raise ManticoreError(
            f"text: a list of {len(documents)} single characters, expected documents. Fix: pass [text], not list(text)"
        )
    return documents


def _is_unicode(document: str) -> bool:
    try:
        document.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
