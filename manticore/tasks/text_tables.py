"""Documents out of tables: JSON lines, JSON, CSV, TSV and Parquet, one document per row.

Only the column of text is looked at closely. The others may hold anything, also what differs from row to row.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from datasets import Dataset

from manticore.errors import ManticoreError, in_brief, told
from manticore.registry import did_you_mean
from manticore.tasks.text_sources import compression, table_kind

TEXT = "text"
"""The column that is taken where none is named."""

_NO_TEXT = "Fix: give a file whose rows hold text"
_DAMAGED = (OSError, EOFError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)
_PACKAGES = {"zstd": "zstandard"}


def read_file(path: Path, name: str) -> bytes:
    """The content of a file, decompressed by its name's ending.

    Raises:
        ManticoreError: damaged, more than one file inside, or a compression that this Python cannot read.
    """
    kind = compression(path)
    if kind is None:
        return path.read_bytes()
    damaged = told(f"text {name}", f"cannot be unpacked as {kind}", "give an undamaged file", *_DAMAGED)
    install = f"pip install {_PACKAGES.get(kind, kind)}, or unpack it"
    with damaged, told(f"text {name}", f"{kind} cannot be read here", install, ValueError):
        if kind == "zip":
            return _only_member(path, name)
        with fsspec.open(str(path), "rb", compression=kind) as stream:
            return bytes(stream.read())


def _only_member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise ManticoreError(f"text {name}: {len(members)} files inside (expected one). Fix: unpack it to a folder")
        return archive.read(members[0])


def table_documents(path: Path, name: str, text_column: str | None) -> list[str]:
    """The documents of a table, in the order of its rows; empty ones included.

    Args:
        path: of the file.
        name: what errors call it.
        text_column: the column that holds the documents; None takes ``text``, or the only column of strings.

    Raises:
        ManticoreError: rows that cannot be read, no such column, several, or one that holds something else than text.
    """
    kind, content = table_kind(path), read_file(path, name)
    if kind == "parquet":
        return _parquet(content, name, text_column)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManticoreError(f"text {name}: line {line} is not UTF-8. Fix: convert it to UTF-8") from error
    if not text.strip():
        return []
    if kind in ("csv", "tsv"):
        return _separated(text, name, text_column, "\t" if kind == "tsv" else ",")
    rows = _json_lines(text, name) if kind == "jsonl" else _json(text, name)
    columns: dict[str, list[Any]] = {}
    for _, row in rows:
        columns |= {key: [] for key in row if key not in columns}
    column = _choose(name, text_column, {key: _kind_of(row.get(key) for _, row in rows) for key in columns})
    return _strings([row.get(column) for _, row in rows], column, name, [where for where, _ in rows])


def column_documents(rows: Dataset, name: str, text_column: str | None) -> list[str]:
    """The documents of a data set's column of text; rules and errors as in :func:`table_documents`."""
    kinds = {column: _feature_kind(feature) for column, feature in rows.features.items()}
    column = _choose(name, text_column, kinds)
    return _strings(rows.with_format(None)[column], column, name)


def _json_lines(text: str, name: str) -> list[tuple[str, Mapping[str, Any]]]:
    # not splitlines: JSON may hold other line ends than \n as they are
    lines = enumerate(text.split("\n"), 1)
    return [(f"line {number}", _row(_parsed(line, f"line {number}", name), f"line {number}", name))
            for number, line in lines if line.strip()]  # fmt: skip


def _json(text: str, name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """A list of rows; failing that, one row per line, as many files of that ending have."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().partition("\n")[0]
        if not (first.startswith("{") and first.rstrip().endswith("}")):
            raise ManticoreError(f"text {name}: no JSON ({in_brief(error)}). Fix: mend it") from error
        return _json_lines(text, name)
    rows = value if isinstance(value, list) else [value]
    return [(f"row {index}", _row(row, f"row {index}", name)) for index, row in enumerate(rows, 1)]


def _parsed(line: str, where: str, name: str) -> Any:
    with told(f"text {name}", f"{where} is no JSON", "mend that line", ValueError, RecursionError):
        return json.loads(line)


def _row(value: Any, where: str, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ManticoreError(
            f"text {name}: {where} is {_kind_of([value])} (expected an object with a column of text). {_NO_TEXT}"
        )
    return value


def _separated(text: str, name: str, text_column: str | None, separator: str) -> list[str]:
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows: list[tuple[int, list[str]]] = []
        begun = 1
        try:
            for row in reader:
                if row:
                    rows.append((begun, row))
                begun = reader.line_num + 1
        except csv.Error as error:
            raise ManticoreError(f"text {name}: line {begun} cannot be read ({error}). Fix: mend its quotes") from error
    head = rows[0][1]
    if len(head) == 1 and (other := next((sign for sign in (";", "\t", ",", "|") if sign in head[0]), None)):
        raise ManticoreError(
            f"text {name}: its columns seem to be separated by {other!r} (expected {separator!r}). "
            "Fix: save it with that separator, .csv with commas and .tsv with tabs"
        )
    if twice := next((column for index, column in enumerate(head) if column in head[:index]), None):
        raise ManticoreError(f"text {name}: two columns are called {twice!r}. Fix: rename one in its first line")
    for line, row in rows[1:]:
        if len(row) != len(head):
            raise ManticoreError(
                f"text {name}: line {line} has {len(row)} fields, the first line names {len(head)} columns "
                f"({', '.join(head)}). Fix: mend that line"
            )
    values = {column: [row[index] for _, row in rows[1:]] for index, column in enumerate(head)}
    column = _choose(name, text_column, {key: _written_kind(found) for key, found in values.items()})
    return _strings(values[column], column, name)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Fields as long as documents are; the limit is one for the whole process."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(content: bytes, name: str, text_column: str | None) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    damaged = (f"text {name}", "cannot be read as Parquet", "give an undamaged file")
    with told(*damaged, pyarrow.ArrowException, OSError):
        file = parquet.ParquetFile(io.BytesIO(content))
        kinds = {field.name: _arrow_kind(field.type) for field in file.schema_arrow}
        column = _choose(name, text_column, kinds)
        # by its field: a dot in a column's name would mean a nested one
        values = file.read().column(file.schema_arrow.get_field_index(column)).to_pylist()
    return _strings(values, column, name)


STRINGS = "text"
_NOTHING = "nothing"


def _choose(name: str, wanted: str | None, kinds: Mapping[str, str]) -> str:
    """The column of text: the named one, ``text``, or the only one that holds strings."""
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items()) or "none"
    if wanted is not None:
        if wanted not in kinds:
            hint = did_you_mean(wanted, list(kinds))
            hint = hint if hint.startswith(". Did") else ". Fix: name one of them, top level"
            raise ManticoreError(f"text {name}: no column {wanted!r} (its columns: {listed}){hint}")
        column = wanted
    elif TEXT in kinds:
        column = TEXT
    else:
        found = [column for column, kind in kinds.items() if kind == STRINGS]
        if len(found) != 1:
            which = "no column" if not found else f"{len(found)} columns"
            raise ManticoreError(
                f"text {name}: {which} of text and none called {TEXT} (its columns: {listed}). "
                f"Fix: {'name the one to read with text_column' if found else 'give one whose rows hold text'}"
            )
        column = found[0]
    # text in some rows only: the row that holds something else is named later
    if not kinds[column].startswith((STRINGS, _NOTHING)):
        raise ManticoreError(
            f"text {name}: column {column!r} holds {kinds[column]} (expected text; its columns: {listed}). "
            "Fix: name another with text_column, or write the text of nested fields into a column of its own"
        )
    return column


def _strings(values: Sequence[Any], column: str, name: str, where: Sequence[str] | None = None) -> list[str]:
    def place(index: int) -> str:
        return where[index] if where is not None else f"row {index + 1}"

    missing = [index for index, value in enumerate(values) if value is None]
    if missing:
        raise ManticoreError(
            f"text {name}: {len(missing)} of {len(values)} rows have no {column!r} (first: {place(missing[0])}). "
            "Fix: fill them in, or leave these rows out"
        )
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ManticoreError(
                f"text {name}: {place(index)}: {column!r} is {_kind_of([value])} (expected text). Fix: mend that row"
            )
        if not is_unicode(value):
            raise ManticoreError(
                f"text {name}: {place(index)} holds half characters (surrogates). Fix: decode as UTF-8"
            )
    return list(values)


def is_unicode(document: str) -> bool:
    """Whether a string can be written as UTF-8."""
    try:
        document.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind_of(values: Iterable[Any]) -> str:
    """What JSON values are, in a word."""
    found = dict.fromkeys(_KINDS.get(type(value), type(value).__name__) for value in values if value is not None)
    return " and ".join(sorted(found, key=lambda kind: kind != STRINGS)) or _NOTHING


_KINDS = {str: STRINGS, dict: "nested fields", list: "lists", bool: "true or false", int: "numbers", float: "numbers"}


def _written_kind(values: Iterable[str]) -> str:
    """What the fields of a column written in characters are: numbers only if all that are not empty are."""
    given = [value.strip() for value in values if value.strip()]
    if not given:
        return _NOTHING
    if all(value.lower() in ("true", "false") for value in given):
        return "true or false"
    return "numbers" if all(map(_is_number, given)) else STRINGS


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _arrow_kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return STRINGS
    if types.is_null(kind):
        return _NOTHING
    if types.is_struct(kind) or types.is_map(kind):
        return "nested fields"
    return "lists" if types.is_list(kind) or types.is_large_list(kind) else str(kind)


def _feature_kind(feature: Any) -> str:
    dtype = getattr(feature, "dtype", None)
    if isinstance(feature, dict):
        return "nested fields"
    if isinstance(feature, list):
        return "lists"
    if dtype in ("string", "large_string", "string_view"):
        return STRINGS
    return _NOTHING if dtype == "null" else {"list": "lists", "dict": "nested fields"}.get(str(dtype), str(dtype))
