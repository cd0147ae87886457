"""Independent jobs in several processes of one CPU, with one thread each.

The threads of one process wait for each other at every operator of a small model; processes do not. Processes are
forked, so a job may hold closures and loaded data; they end with their caller, however that ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from manticore.errors import ManticoreError
from manticore.processes import end_with

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Died(ManticoreError):
    """A process ended without an answer."""


def useful_workers(workers: int, *, cpu: bool) -> int:
    """How many processes make sense here: one outside Linux, or where an accelerator does the work.

    Args:
        workers: as many as were asked for.
        cpu: the work stays on the CPU even if there is an accelerator.
    """
    # only there does a child end with its caller, which prctl asks for
    return workers if sys.platform == "linux" and (cpu or not torch.accelerator.is_available()) else 1


_LAST_WORDS = 10.0
"""Seconds that a process has to end when it is asked to."""


def side_by_side(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, *, outlives: bool = False
) -> Iterator[tuple[Job, Result]]:
    """Call ``function`` on every job, each in a process of its own with one thread; results as they come.

    Args:
        function: gets a job; what it changes in memory stays in its process. Its logging is dropped.
        jobs: in the order in which they start.
        workers: processes at a time, at least 1.
        outlives: go on when a process dies; nothing is yielded for its job.

    Yields:
        (job, result), in the order in which jobs end.

    Raises:
        ManticoreError: a process died. What ``function`` raises is raised here. Either way the other processes are
            ended first.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(jobs))
    running: dict[Connection, tuple[BaseProcess, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_answer, args=(theirs, function, job, os.getpid()), daemon=True
                )
                process.start()
                theirs.close()
                running[ours] = (process, job)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, job = running.pop(ready)
                try:
                    result = _result(ready, process, job)
                except _Died:
                    if not outlives:
                        raise
                    continue
                yield job, result
    finally:
        for process, _ in running.values():
            process.terminate()
        deadline = time.monotonic() + _LAST_WORDS
        for process, _ in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()


def _answer(connection: Connection, function: Callable[[Job], Any], job: Job, caller: int) -> None:
    """In the new process: send what ``function`` returns, or the exception that it raises."""
    # whoever presses Ctrl-C means the caller, which ends this process; a killed caller takes it along
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with(caller)
    # a handler may write through a lock that another thread of the caller held while this process was forked
    logging.disable(logging.CRITICAL)
    # the thread pools of OpenMP do not survive a fork
    torch.set_num_threads(1)
    try:
        outcome: tuple[bool, Any] = (True, function(job))
    except Exception as error:
        outcome = (False, error)
    connection.send(outcome)


def _result(connection: Connection, process: BaseProcess, job: object) -> Any:
    try:
        good, value = connection.recv()
    except EOFError:
        process.join()
        raise _Died(
            f"the process of {job} died (exit code {process.exitcode}; -9 often means that memory ran out). "
            "Fix: resume with workers=1"
        ) from None
    process.join()
    if not good:
        raise value
    return value
