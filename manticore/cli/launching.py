"""``--processes N``: the verbs that train start themselves N times, through torchrun's own launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from typing import Annotated

import typer

from manticore.errors import ManticoreError
from manticore.processes import LAUNCHER, process_count, refuse_lost_processes

Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        help="Processes that share each batch, one per GPU or CPU core; under torchrun, how many are expected.",
        min=1,
    ),
]

SHARED = ("search", "distill", "finetune")
"""The verbs that several processes can share."""


def refuse_unshared(verb: str | None) -> None:
    """Refuse a verb that every one of several processes would do in full.

    Raises:
        ManticoreError: a launcher started several processes of such a verb.
    """
    if verb is not None and verb not in SHARED and process_count() > 1:
        raise ManticoreError(
            f"{verb}: started as {process_count()} processes, but its work is not shared between processes. "
            f"Fix: run it without a launcher; {' and '.join(SHARED)} can be shared"
        )


def start_processes(processes: int | None) -> None:
    """Returns in each process that is to work: here, if a launcher started it or one process is enough.

    Otherwise the command is started `processes` times, and this process ends as they do.

    Raises:
        ManticoreError: other than `processes` were started, or there are not as many accelerators.
    """
    refuse_lost_processes()
    started = process_count()
    if started > 1 or processes in (None, 1) or "LOCAL_RANK" in os.environ:
        if processes not in (None, started):
            raise ManticoreError(
                f"--processes: {processes} are expected, {started} were started. "
                "Fix: give the launcher the same number, or leave --processes out"
            )
        return
    assert processes is not None
    _check_accelerators(processes)
    raise SystemExit(_run(processes, [sys.executable, "-m", "manticore", *sys.argv[1:]]))


def _check_accelerators(processes: int) -> None:
    import torch
    from accelerate.utils import parse_flag_from_env

    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else processes
    if processes > devices and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise ManticoreError(
            f"--processes: {processes} are more than the {devices} accelerators of this machine. "
            f"Fix: --processes {devices}, or ACCELERATE_USE_CPU=true to stay on the CPU"
        )


def _run(processes: int, command: list[str]) -> int:
    """Run `command` so many times; the exit code that stands for all of them. They print for themselves."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[LAUNCHER] = str(os.getpid())
    # each process would take all cores for itself
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    # torchrun's own words about a process that has already said what is wrong
    logging.disable(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise ManticoreError(
                f"processes: process {rank} of {processes} was ended by {name} (SIGKILL often means that memory ran "
                "out). Fix: a smaller --batch-size, a larger --accumulation, or fewer --processes"
            ) from None
        return failure.exitcode
    except SignalException as stop:
        # the first of the processes has said what is left
        return 128 + stop.sigval
    return 0
