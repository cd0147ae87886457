"""Workers of a search: the command line in processes of their own, one of which may end itself in the middle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stopping import Command


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


def _prepare(end: tuple[int, int] | None, host: str | None) -> None:
    from manticore.search import presence

    soon()
    if host is not None:
        presence.HOST = host
    if end is not None:
        end_at(*end)


class Worker(Command):
    """A command line at work on a search.

    Args:
        words: after ``manticore``.
        folder: where it works.
        end: step and number of a signal that it gets.
        host: the name of its machine, if not this one's.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, end: tuple[int, int] | None = None, host: str | None = None
    ) -> None:
        super().__init__(words, folder, partial(_prepare, end, host))
