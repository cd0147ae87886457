"""Where results are kept that can be made again: one folder, entries named by the hash of what made them.

The folder is ``$MANTICORE_CACHE``, else ``$XDG_CACHE_HOME/manticore``, else ``~/.cache/manticore``; for a user without
a home folder, as in most containers, a private one in the folder for temporary files.

An entry is one file whose name ends in a digest of its own name and content. So one rename publishes both, several
processes may make an entry at once, and what was cut off, changed or swapped since is seen before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError
from manticore.paths import expanded
from manticore.writing import partial_path, sync, write_json

logger = logging.getLogger(__name__)

VARIABLE = "MANTICORE_CACHE"
MANIFEST = "digests.json"
"""In an entry that is a folder: file → digest."""

_DIGITS = 32
_CHUNK = 1 << 20


def cache_folder(kind: str) -> Path:
    """The folder of one kind of entries; it need not exist yet.

    Raises:
        ManticoreError: there is no place for it that only this user can write to.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return expanded(chosen, VARIABLE) / kind
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return expanded(base, "XDG_CACHE_HOME") / "manticore" / kind
    try:
        return Path.home() / ".cache" / "manticore" / kind
    except RuntimeError:
        return _homeless() / kind


def content_key(content: Any) -> str:
    """24 hex digits that stand for ``content``: anything JSON can hold; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def file_digest(path: Path, begin: bytes = b"") -> str:
    """The sha256 of ``begin`` and a file's content, in hex."""
    digest = hashlib.sha256(begin)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    folder: Path
    name: str
    """Stands for everything that its content depends on."""
    suffix: str

    def find(self) -> Path | None:
        """The entry if it is there and whole.

        Raises:
            OSError: the folder or the file cannot be read.
        """
        for path in self._candidates():
            if path == self._path(file_digest(path, self._begin)):
                return path
            logger.warning("%s is damaged; it is made again", path)
        return None

    def read(self) -> bytes | None:
        """The entry's content if it is there and whole.

        Raises:
            OSError: the folder or the file cannot be read.
        """
        for path in self._candidates():
            content = path.read_bytes()
            if path == self._path(hashlib.sha256(self._begin + content).hexdigest()):
                return content
            logger.warning("%s is damaged; it is made again", path)
        return None

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """A file beside the entry to be written and kept; what is left of it at the end is removed.

        Raises:
            OSError: the folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with partial_path(self.folder / f"{self.name}{self.suffix}") as path:
            yield path

    def keep(self, aside: Path) -> Path:
        """Move a finished file into its place, over what is there; returns the place.

        Raises:
            OSError: it cannot be written.
        """
        sync(aside)
        path = self._path(file_digest(aside, self._begin))
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(aside, path)
        for other in self._candidates():
            if other != path:
                other.unlink(missing_ok=True)
        return path

    @property
    def _begin(self) -> bytes:
        return f"{self.name}\0".encode()

    def _path(self, digest: str) -> Path:
        return self.folder / f"{self.name}.{digest[:_DIGITS]}{self.suffix}"

    def _candidates(self) -> list[Path]:
        length = len(self._path("0" * _DIGITS).name)
        begin, end = f"{self.name}.", self.suffix
        try:
            found = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        names = [p for p in found if p.name.startswith(begin) and p.name.endswith(end) and len(p.name) == length]
        return [path for path in names if stat.S_ISREG(path.lstat().st_mode)]


def seal(folder: Path, name: str) -> None:
    """Write into a finished folder what :func:`is_whole` compares, after all of its files have reached the disk."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        digests[path.relative_to(folder).as_posix()] = file_digest(path)
    write_json(folder / MANIFEST, {"entry": name, "files": digests})


def fault_of(folder: Path, name: str) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if all its files are as they were written.

    Files that were added later do not count.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["entry"] != name or not manifest["files"]:
            return f"{MANIFEST} is of something else"
        for file, digest in manifest["files"].items():
            if not (folder / file).is_file():
                return f"{file} is missing"
            if file_digest(folder / file) != digest:
                return f"{file} is not what was written"
    except PermissionError:
        raise
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return None


def is_whole(folder: Path, name: str) -> bool:
    """Whether all files of a sealed folder are as they were written."""
    try:
        return fault_of(folder, name) is None
    except OSError:
        return False


def _homeless() -> Path:
    """A folder for a user whom the system does not know: no other user can have put anything into it."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"manticore-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if private and (not hasattr(os, "getuid") or found.st_uid == os.getuid()):
            return folder
    except OSError:
        pass
    raise ManticoreError(f"cache: this user has no home, and {folder} may not be used. Fix: set HOME or {VARIABLE}")
