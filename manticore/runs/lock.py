"""One process per run folder: a lock that names its owner and outlives no one.

The operating system drops the lock when its process ends, however it ends; a killed run needs no cleaning up.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from manticore.errors import ManticoreError
from manticore.printing import one_line
from manticore.writing import write_text

LOCK = ".lock"
OWNER = ".owner"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder while the block runs.

    Raises:
        ManticoreError: another process holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ManticoreError(
            f"{folder}: {_owner(folder)} is working in this run folder. Fix: wait for it, or stop it first"
        ) from None
    except OSError as error:
        raise ManticoreError(
            f"{folder / LOCK}: cannot be locked ({error.strerror or error}). Fix: remove it, if no process works there"
        ) from error
    try:
        write_text(folder / OWNER, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        return one_line((folder / OWNER).read_text(encoding="utf-8")[:200]) or "another process"
    except (OSError, ValueError):
        return "another process"
