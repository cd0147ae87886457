"""Several processes that share one training: who is first, what they wait for, and what would silently run as one.

Launchers (torchrun, ``accelerate launch``, mpirun) tell each process its place by environment variables; accelerate
joins the processes by them. Nothing here imports torch before it is needed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from manticore.errors import ManticoreError

# the names that accelerate reads, in its order
_COUNTS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
_INDICES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "RANK")


LAUNCHER = "MANTICORE_LAUNCHER"
"""Number of the process that has started this one to share its work."""

_PR_SET_PDEATHSIG = 1
_LOOKS_PER_SECOND = 2


def process_count() -> int:
    """How many processes share the work, as their launcher says; 1 without one."""
    return max(_number(_COUNTS, 1), 1)


def process_index() -> int:
    """This process's place among them, from 0."""
    return max(_number(_INDICES, 0), 0) if process_count() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return process_index() == 0


def run_mark() -> str:
    """Tells runs apart in the names of half-written files; all processes of a run have the same."""
    return f"port-{os.environ.get('MASTER_PORT', '')}" if process_count() > 1 else own_mark()


def own_mark() -> str:
    """Tells processes apart in the names of half-written files."""
    # containers that share a folder count their processes from 1 each
    return f"{os.getpid()}-{os.urandom(4).hex()}"


def wait_for_all() -> None:
    """Returns once every process has called it; the first call joins the processes."""
    if process_count() == 1:
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    torch.distributed.barrier()


def end_with_launcher() -> None:
    """Let this process end when the one that started it to share its work does, however that ends."""
    launcher = os.environ.get(LAUNCHER, "")
    if process_count() > 1 and launcher.isdecimal():
        end_with(int(launcher))


def end_with(parent: int) -> None:
    """Let this process be killed when its parent ends, however that ends; at once if it has ended already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    elif hasattr(os, "getppid"):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1 / _LOOKS_PER_SECOND)
    os._exit(1)


def leave() -> None:
    """Take leave of the other processes, if they were ever joined."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def refuse_lost_processes(joined: int | None = None) -> None:
    """Refuse to work alone, or in part, where a launcher was asked for more processes.

    ``accelerate launch`` starts a single process on a CPU, however many it was asked for, and says nothing. Only the
    address at which the processes would have met gives it away.

    Args:
        joined: how many processes accelerate has joined; None before it has.

    Raises:
        ManticoreError: fewer processes run than were asked for.
    """
    launched = any(name in os.environ for name in (*_COUNTS, *_INDICES, "LOCAL_RANK"))
    if not launched and "ACCELERATE_DYNAMO_USE_FULLGRAPH" in os.environ and "MASTER_ADDR" in os.environ:
        raise ManticoreError(
            "processes: accelerate launch was asked for several and started one, as it does on a CPU. "
            "Fix: manticore's own --processes N, or torchrun --nproc_per_node N -m manticore"
        )
    if joined is not None and joined != process_count():
        raise ManticoreError(
            f"processes: {process_count()} were started, but accelerate has joined {joined}. "
            "Fix: torchrun --nproc_per_node N -m manticore"
        )


def lost_another(error: BaseException) -> bool:
    """Whether `error` only says that another process has ended."""
    texts = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted")
    return process_count() > 1 and any(text in str(error) for text in texts)


def _number(names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.lstrip("-").isdigit():
            return int(value)
    return default
