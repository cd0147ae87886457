"""Which worker of a search is alive, and which candidate one of them is training: locks that end with their process."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as Folder

from filelock import FileLock, Timeout

from manticore.errors import ManticoreError
from manticore.processes import own_mark

HOST = socket.gethostname()
LOCKS = "locks"


class Presence:
    """This process among the workers of a search.

    Args:
        folder: of the search, which all workers see.

    Raises:
        ManticoreError: a file system that has no locks.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder / LOCKS
        self._folder.mkdir(parents=True, exist_ok=True)
        self.mark = own_mark()
        self._lock = FileLock(self._file(self.mark))
        try:
            self._lock.acquire()
        except NotImplementedError as error:
            raise ManticoreError(
                f"search: {folder} is on a disk without file locks, which keep workers apart. Fix: another place"
            ) from error

    @property
    def worker(self) -> list[str]:
        """Machine and mark, as trials note it."""
        return [HOST, self.mark]

    def is_dead(self, worker: object) -> bool:
        """Whether a worker has surely ended; of one on another machine that is not known."""
        if not isinstance(worker, list) or len(worker) != 2 or worker[0] != HOST or worker == self.worker:
            return False
        file = self._file(str(worker[1]))
        if not file.exists():
            return False
        try:
            with FileLock(file, timeout=0):
                return True
        except (Timeout, OSError):
            return False

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Wait until no other worker is at ``what``, and keep them from it: one may have been taken for dead."""
        with FileLock(self._file(what)):
            yield

    def leave(self) -> None:
        """This process is no worker any more."""
        self._lock.release()
        self._file(self.mark).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all locks, after the last trial."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, name: str) -> Folder:
        return self._folder / f"{name}.lock"
