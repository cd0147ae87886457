"""Where a text comes from, told by its name alone: nothing is read, nothing heavy is imported.

A name is ``stdlib`` or ``docstrings``, a data set on the hub, a file, a folder, or a pattern such as
``corpus/*.jsonl``. Files are tables (rows with a column of text) or plain text by their names' endings, behind that of
a compression.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError
from manticore.paths import expanded

LENGTH = 256
"""Tokens of an example of text, where nothing else is asked for."""
STDLIB = "stdlib"
DOCSTRINGS = "docstrings"
BUILTIN = {
    STDLIB: "the sources of Python's standard library",
    DOCSTRINGS: "English out of the docstrings of packages that come along",
}
"""Texts that every machine has → what they are."""
HUB = "hf:"

TABLES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""Ending → how rows are written."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".lzma": "lzma", ".zip": "zip", ".zst": "zstd"}
"""Ending → fsspec's name for it."""

_DATASET_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class TextSource:
    """What a name stands for."""

    name: str
    hub: str | None = None
    """``ID`` or ``ID:CONFIGURATION``, where it is a data set on the hub."""
    saved: Path | None = None
    """A folder that ``Dataset.save_to_disk`` has written."""
    files: tuple[Path, ...] = ()
    """Files in a fixed order; none for the built-in texts, the hub and saved data sets."""
    many: bool = False
    """Whether a folder or a pattern was given: what is not text may then be left out."""

    @property
    def has_columns(self) -> bool:
        """Whether there are columns to choose from."""
        return self.hub is not None or self.saved is not None or any(table_kind(file) for file in self.files)


def find_text(source: str | Path) -> TextSource:
    """What a name stands for.

    Raises:
        ManticoreError: nothing there, no regular file, or tables beside plain text.
    """
    name = str(source)
    if name in BUILTIN:
        return TextSource(name)
    if name.startswith(HUB):
        return TextSource(name, hub=name.removeprefix(HUB))
    path = expanded(name)
    try:
        if path.is_dir():
            if _is_saved(path):
                return TextSource(name, saved=path)
            below = [file for file in path.rglob("*") if not _hidden(file.relative_to(path)) and file.is_file()]
            return _several(name, below)
        if path.exists():
            if not path.is_file():
                raise ManticoreError(f"text {name}: neither a file nor a folder. Fix: give a regular file")
            return TextSource(name, files=(path,))
        if glob.has_magic(name):
            found = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
            if found:
                return _several(name, found)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManticoreError(f"text {name}: cannot be read ({reason}). Fix: check the path") from error
    # "data/notes.txt" in an existing folder is a misspelt file, "owner/name" is not.
    if isinstance(source, str) and "/" in name and _DATASET_ID.fullmatch(name) and not path.parent.exists():
        return TextSource(name, hub=name)
    raise ManticoreError(
        f"text {name}: no such file or folder. Fix: check the path, or write {HUB}{name} if it is a data set on the hub"
    )


def beside_sources(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """What does not go with the task's option ``sources``, or not without it: the option, and a sentence about it."""
    if not options.get("sources"):
        return ("change_every", "only with sources. Fix: leave it out") if options.get("change_every") else None
    for name, fix in (("source", "leave one of them out"), ("text_column", "give it for each source")):
        if options.get(name) is not None:
            return name, f"beside sources. Fix: {fix}"
    return None


def table_kind(path: Path) -> str | None:
    """How the rows of a file are written, by its ending; None for plain text."""
    return TABLES.get(Path(path.stem).suffix.lower() if compression(path) else path.suffix.lower())


def compression(path: Path) -> str | None:
    """fsspec's name of a file's compression, by its ending; None where there is none."""
    return COMPRESSIONS.get(path.suffix.lower())


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` has written it: its JSON files only describe the rows."""
    state = (folder / "state.json").is_file() and any(folder.glob("*.arrow"))
    return state or (folder / "dataset_dict.json").is_file()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _several(name: str, found: list[Path]) -> TextSource:
    files = tuple(sorted(found))
    tables = [file for file in files if table_kind(file)]
    if tables and len(tables) < len(files):
        other = next(file for file in files if not table_kind(file))
        raise ManticoreError(
            f"text {name}: {len(tables)} tables (such as {tables[0].name}) beside {len(files) - len(tables)} other "
            f"files (such as {other.name}). Fix: give one kind alone, in a folder of its own or as a pattern, "
            f"'{Path(name) / '**' / ('*' + tables[0].suffix)}'"
        )
    return TextSource(name, files=files, many=True)
