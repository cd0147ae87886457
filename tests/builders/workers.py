"""Workers of a search: the command line in processes of their own, one of which may end itself in the middle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 300
"""Seconds that a command may take on a busy machine."""


def soon(heartbeat: int = 1, grace: int = 2) -> None:
    """Let workers of this process look at each other often."""
    from manticore.search import storage, study

    storage.HEARTBEAT, storage.GRACE, study.LOOK = heartbeat, grace, 0.1


def end_at(step: int, number: int, once: Path | None = None, path: list[int] | None = None) -> None:
    """Let this process get a signal at a step of its training.

    Args:
        step: of all that it makes, from 1.
        number: of the signal.
        once: a file that the first process to end makes; later ones live.
        path: only where this path trains.
    """
    from manticore.training.trainer import TaskTrainer

    made, original = [0], TaskTrainer.training_step

    def training_step(self: Any, *arguments: Any, **named: Any) -> Any:
        if path is None or self.model.config.path == path:
            made[0] += 1
            if made[0] == step and not (once is not None and once.exists()):
                if once is not None:
                    once.touch()
                os.kill(os.getpid(), number)
        return original(self, *arguments, **named)

    TaskTrainer.training_step = training_step  # type: ignore[method-assign]


def _work(words: Sequence[str], said: str, folder: str, end: tuple[int, int] | None, host: str | None) -> None:
    os.chdir(folder)
    file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from manticore.cli.app import main
    from manticore.search import presence

    torch.set_num_threads(1)
    soon()
    if host is not None:
        presence.HOST = host
    if end is not None:
        end_at(*end)
    sys.argv = ["manticore", *words]
    main()


class Worker:
    """A command line at work.

    Args:
        words: after ``manticore``.
        folder: where it works.
        end: step and number of a signal that it gets.
        host: the name of its machine, if not this one's.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, end: tuple[int, int] | None = None, host: str | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["manticore.search.candidates", "manticore.cli.app"])
        self._said = folder / f"said-{time.monotonic_ns()}.txt"
        self._process: Any = context.Process(target=_work, args=(words, str(self._said), str(folder), end, host))
        self._process.start()

    def end(self) -> tuple[int, str]:
        """Its exit code, and all that it printed."""
        self._process.join(PATIENCE)
        return self._process.exitcode, self._said.read_text(encoding="utf-8") if self._said.exists() else ""
