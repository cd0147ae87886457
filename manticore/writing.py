"""Nothing half-written: every file and folder is written aside, then renamed into place.

What is written aside is locked by its process. The system drops the lock however that process ends, so the next one
that writes in the same place can tell what was left behind, and removes it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError
from manticore.paths import expanded
from manticore.processes import is_first, own_mark, run_mark, wait_for_all

try:
    import fcntl
except ImportError:
    # elsewhere nothing that was left behind is removed
    fcntl = None  # type: ignore[assignment]

_PARTIAL = re.compile(r"\..+\.partial-[\w-]+")
_LONGEST_NAME = 255


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; a reader, or a process that is killed, sees the old file or the new one, never a part."""
    with partial_path(path) as aside:
        aside.write_bytes(content)
        sync(aside)
        os.replace(aside, path)


def is_partial(path: str | Path) -> bool:
    """Whether a file or folder is one that is still being written."""
    return _PARTIAL.fullmatch(Path(path).name) is not None


def sync(path: Path) -> None:
    """Wait until a file's content has reached the disk."""
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())


@contextmanager
def partial_path(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """An empty file or folder beside ``path`` to be filled and renamed; what is left of it at the end is removed.

    Raises:
        OSError: it cannot be made.
    """
    remove_left_behind(path.parent)
    aside = _partial_of(path, own_mark())
    held = _hold(aside, folder=folder)
    try:
        yield aside
    finally:
        if folder:
            remove(aside)
        else:
            aside.unlink(missing_ok=True)
        _release(held)


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
    path = expanded(out)
    if path.exists() or path.is_symlink():
        raise ManticoreError(f"--out {out}: exists already, nothing was changed. Fix: choose another name or remove it")
    _refuse_place(out, path.absolute().parent)
    return path


def usable_folder(out: str | Path) -> Path:
    """The path of a folder to go on in, which is made where it does not exist yet.

    Raises:
        ManticoreError: a part of the path is a file, or may not be written.
    """
    path = expanded(out)
    _refuse_place(out, path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _refuse_place(out: str | Path, place: Path) -> None:
    """Raises ManticoreError where nothing can be made in a folder, or in the nearest one above it that exists."""
    nearest = next(each for each in (place.absolute(), *place.absolute().parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise ManticoreError(f"--out {out}: {nearest} is a file, not a folder. Fix: choose a place inside a folder")
    # tried, not asked: root may write everywhere, and yet nothing can be made in /proc
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".manticore-", dir=nearest))
    except OSError as error:
        why = error.strerror or error
        raise ManticoreError(f"--out {out}: {nearest} may not be written ({why}). Fix: choose another place") from error


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder to fill beside ``out``, renamed to ``out`` at the end and removed if anything fails.

    Of several processes that share a training the first one makes, renames and removes it; all may write into it.

    Raises:
        ManticoreError: ``out`` exists.
    """
    path = expanded(out)
    aside, held = _partial_of(path, run_mark()), None
    if is_first():
        refuse_existing(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_behind(path.parent)
        shutil.rmtree(aside, ignore_errors=True)
        held = _hold(aside, folder=True)
    try:
        wait_for_all()
        yield aside
        wait_for_all()
        if is_first():
            refuse_existing(path)
            os.rename(aside, path)
    finally:
        if is_first():
            remove(aside)
        _release(held)


def _partial_of(path: Path, mark: str) -> Path:
    """Where ``path`` is written aside, in a name that no file system finds too long where it takes ``path``'s."""
    end = f".partial-{mark}"
    name = path.name
    while len(os.fsencode(f".{name}{end}")) > _LONGEST_NAME:
        name = name[:-1]
    return path.with_name(f".{name}{end}")


def _hold(aside: Path, *, folder: bool) -> int | None:
    """Make ``aside`` and lock it; None where the file system has no locks."""
    while True:
        if folder:
            aside.mkdir(exist_ok=True)
        else:
            aside.touch()
        if fcntl is None:
            return None
        held = None
        # before it is locked another process may take it for one that was left behind
        with suppress(FileNotFoundError):
            held = os.open(aside, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError:
                os.close(held)
                return None
            if os.path.samestat(os.fstat(held), os.stat(aside)):
                return held
        _release(held)


def _release(held: int | None) -> None:
    if held is not None:
        os.close(held)


def remove_left_behind(folder: Path) -> None:
    """Remove what processes that have ended were writing aside in ``folder``."""
    if fcntl is None:
        return
    try:
        found = [entry for entry in os.scandir(folder) if _PARTIAL.fullmatch(entry.name) and not entry.is_symlink()]
    except OSError:
        return
    for entry in found:
        try:
            held = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        except OSError:
            # its process is alive, or it is not ours to remove
            pass
        finally:
            os.close(held)


def remove(folder: Path) -> None:
    """Remove a folder, also where the launcher asks this process to end meanwhile, as it does when another one died."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
