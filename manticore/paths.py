"""Paths that people give: ``~`` for a home folder, and links that lead out of a folder which is written to."""

from __future__ import annotations

import os
from pathlib import Path

from manticore.errors import ManticoreError


def expanded(path: str | Path, where: str | None = None) -> Path:
    """The path with ``~`` and ``~user`` replaced.

    Args:
        path: as it was given.
        where: the option or variable that it was given for, for the message.

    Raises:
        ManticoreError: there is no such user, or this one has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ManticoreError(
            f"{where or path}: no home folder for {str(path)!r}. Fix: write the path in full"
        ) from None


def refuse_links_out(folder: Path) -> None:
    """Refuse a folder to write into in which a link leads elsewhere: who made it could have files overwritten there.

    Raises:
        ManticoreError: there is one.
    """
    root = folder.resolve()
    waiting = [root] if root.is_dir() else []
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
                raise ManticoreError(
                    f"{folder}: {Path(entry.path).relative_to(root)} is a link that leads out of the folder, nothing "
                    "was written. Fix: put what it leads to in its place"
                )
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
