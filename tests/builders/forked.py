"""Processes of tests that are forked from one that has imported everything: each import is paid for once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

PRELOADED = [
    "datasets",
    "manticore.cli.app",
    "manticore.experiments.compare",
    "manticore.experiments.mad.run",
    "manticore.hybrid.lora",
    "manticore.hybrid.modeling",
    "manticore.report.figures",
    "manticore.search.candidates",
    "manticore.search.differentiable.search",
    "manticore.stages.pipeline",
    "manticore.tasks.mad.tasks",
    "manticore.training.pretrain",
    "peft",
    "transformers.models.gpt_neo.modeling_gpt_neo",
    "transformers.models.mamba.modeling_mamba",
]


def forked(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that has started to call `target`: ``multiprocessing.Process``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_called, args=(target, *arguments))
    process.start()
    return process


class Script:
    """Code that a process runs as ``python -c`` would, begun.

    Args:
        code: finds `arguments` in ``sys.argv[1:]``.
        said: a file of its own, for what it prints.
        environment: beside this process's.
    """

    def __init__(self, code: str, *arguments: str, said: Path, **environment: str) -> None:
        self._said = said
        variables = {**os.environ, **environment}
        self._process = forked(_run, code, arguments, str(said), variables, list(sys.path), torch.get_num_threads())

    def end(self) -> tuple[int, str]:
        """Its exit code, negative where a signal ended it, and all that it printed."""
        self._process.join()
        return self._process.exitcode, self._said.read_text(encoding="utf-8")


def _run(
    code: str, arguments: tuple[str, ...], said: str, variables: Mapping[str, str], path: list[str], threads: int
) -> None:
    prints_to(said)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv, sys.path[:] = ["-c", *arguments], path
    torch.set_num_threads(threads)
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})


def prints_to(said: str) -> None:
    """All that this process prints goes to a file."""
    file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def _called(target: Callable[..., None], *arguments: Any) -> None:
    # every training collects garbage, and would go through all that was imported: longer than tiny models train
    gc.freeze()
    target(*arguments)
