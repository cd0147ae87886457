"""Nothing half-written: every file and folder is written aside, then renamed into place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError
from manticore.processes import is_first, run_mark, wait_for_all


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; a reader, or a process that is killed, sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def refuse_existing(out: str | Path) -> Path:
    """The path of an output file or folder that does not exist yet, in a place where one can be made.

    Raises:
        ManticoreError: something is there already, or a part of the path is a file or may not be written.
    """
    path = Path(out).expanduser()
    if path.exists() or path.is_symlink():
        raise ManticoreError(f"--out {out}: exists already, nothing was changed. Fix: choose another name or remove it")
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not nearest.is_dir():
        raise ManticoreError(f"--out {out}: {nearest} is a file, not a folder. Fix: choose a place inside a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ManticoreError(f"--out {out}: {nearest} may not be written. Fix: choose another place")
    return path


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder to fill beside ``out``, renamed to ``out`` at the end and removed if anything fails.

    Of several processes that share a training the first one makes, renames and removes it; all may write into it.

    Raises:
        ManticoreError: ``out`` exists.
    """
    path = Path(out).expanduser()
    aside = path.with_name(f".{path.name}.partial-{run_mark()}")
    if is_first():
        refuse_existing(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    try:
        wait_for_all()
        yield aside
        wait_for_all()
        if is_first():
            refuse_existing(path)
            os.rename(aside, path)
    finally:
        if is_first():
            _remove(aside)


def _remove(folder: Path) -> None:
    """Also where the launcher asks this process to end while it clears away after another one that died."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
