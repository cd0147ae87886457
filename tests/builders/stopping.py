"""The command line in processes that are stopped on the way; started from one that has imported everything."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from forked import forked, prints_to

SOON = 0.002
PATIENCE = 300
"""Seconds that a command may take on a busy machine."""


def _work(
    words: Sequence[str], said: str, folder: str, environment: Mapping[str, str], prepare: Callable[[], None] | None
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    prints_to(said)
    # a shell that starts the tests in the background lets them ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from manticore.cli.app import main

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    if prepare is not None:
        prepare()
    sys.argv = ["manticore", *words]
    main()


class Command:
    """A command line at work.

    Args:
        words: after ``manticore``.
        folder: where it works; what it prints goes to a file there.
        prepare: called in it before the command.
        environment: beside this process's.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None, **environment: str
    ) -> None:
        self._said = folder / f"said-{time.monotonic_ns()}.txt"
        self._process = forked(_work, words, str(self._said), str(folder), environment, prepare)
        self.pid: int = self._process.pid

    def wait_for(self, folder: Path, pattern: str) -> None:
        """Until a path in the folder matches, or the command has ended."""
        deadline = time.monotonic() + PATIENCE
        while not any(folder.glob(pattern)) and self._process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(SOON)

    def end(self) -> tuple[int, str]:
        """Its exit code, and all that it printed."""
        self._process.join(PATIENCE)
        return self._process.exitcode, self._said.read_text(encoding="utf-8") if self._said.exists() else ""


def done(words: Sequence[str], folder: Path, **environment: str) -> str:
    """What a command prints that must succeed."""
    code, said = Command(words, folder, **environment).end()
    assert code == 0, said
    return said
