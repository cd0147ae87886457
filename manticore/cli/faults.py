"""What a person sees when something goes wrong: one line and the right exit code.

2: something a person can fix. 130: stopped by Ctrl-C. 143: asked to end, as schedulers do. 1: a fault of ours, with
its traceback.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from manticore.errors import ManticoreError
from manticore.printing import one_line, without_passwords
from manticore.processes import is_first, lost_another, process_index
from manticore.writing import is_partial

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""The parent of everything wrong with a command line, wherever typer's version keeps it."""

_REASONS = {
    errno.ENOSPC: "the disk is full. Fix: free some space, or write elsewhere with -o",
    errno.EDQUOT: "the disk quota is used up. Fix: free some space, or write elsewhere with -o",
    errno.EFBIG: "the file is larger than allowed here. Fix: raise the limit (ulimit -f), or write elsewhere with -o",
    errno.EROFS: "the file system is read-only. Fix: write elsewhere with -o",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Fix: write elsewhere with -o",
    errno.ENAMETOOLONG: "the name is too long. Fix: a shorter one",
    errno.EISDIR: "is a folder, not a file. Fix: move it away",
    errno.ELOOP: "links lead in a circle. Fix: remove them",
    errno.EACCES: "permission denied. Fix: choose a place that you may read and write",
    errno.EPERM: "permission denied. Fix: choose a place that you may read and write",
}

# Libraries that write in C++ or Rust report what the system said in words of their own.
_TEXTS = {
    errno.ENOSPC: ("No space left on device", "os error 28"),
    errno.EFBIG: ("File too large", "os error 27"),
    errno.EDQUOT: ("Disk quota exceeded", "os error 122"),
}
_SOME_WRITE_FAILED = ("file write failed", "failed writing file")

_HEAD_START = 10.0
"""Seconds that the first process has, to say what is wrong before the others say the same."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: what is half-written is cleared away as after Ctrl-C."""


def end_tidily_on_sigterm() -> None:
    """Without this a SIGTERM would end Python on the spot and leave folders half-written."""

    def end(_number: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)


def exit_code_of(stop: KeyboardInterrupt) -> int:
    """What a shell would report for the signal behind `stop`."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def reported() -> Iterator[None]:
    """Turn the errors that a person can act on into a line on stderr and an exit code."""
    try:
        yield
    except ManticoreError as error:
        _say(*error.lines)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as stop:
        # of several processes the first says it
        if is_first():
            print("stopped, nothing was written", file=sys.stderr)
        raise SystemExit(exit_code_of(stop)) from None
    except Exception as error:
        trouble = disk_trouble(error)
        if lost_another(error):
            trouble = "processes: another process of this run has ended. Fix: see what it said"
            time.sleep(_HEAD_START)
        if trouble is None:
            raise
        _say(trouble)
        raise SystemExit(2) from None


def _say(*lines: str) -> None:
    """Of several processes the first speaks; the launcher ends the others, unless they alone know of the error."""
    if not is_first():
        time.sleep(_HEAD_START)
    where = f" (process {process_index()})" if not is_first() else ""
    for line in lines:
        print(f"error{where}: {one_line(without_passwords(line))}", file=sys.stderr)


@contextmanager
def usage_reported() -> Iterator[None]:
    """Turn a mistyped verb, option or value into the same one line; help that nobody asked for passes."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        print(f"error: {one_line(usage_line(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def usage_line(error: Any) -> str:
    """``manticore align: no such option --tokns. Fix: did you mean --tokens?``"""
    verb = error.ctx.command_path if error.ctx is not None else "manticore"
    near = getattr(error, "possibilities", None)
    if near:
        return f"{verb}: no such option {error.option_name}. Fix: did you mean {near[0]}?"
    what, _, nearest = " ".join(error.format_message().split()).partition(". Did you mean ")
    fix = f"did you mean {nearest}" if nearest else f"see `{verb} -h`"
    return f"{verb}: {what[:1].lower()}{what[1:].rstrip('.')}. Fix: {fix}"


def disk_trouble(error: BaseException) -> str | None:
    """One line for an error of the disk, also where a library has wrapped it; None for all others."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _REASONS:
            return f"{cause.filename or 'writing'}: {_REASONS[cause.errno]}"
        if isinstance(cause, FileNotFoundError) and is_partial(cause.filename or ""):
            # as in /proc, where root may write and yet nothing can be made
            return f"{Path(cause.filename).parent}: nothing can be written there. Fix: choose another place"
        said = str(cause)
        number = next((number for number, texts in _TEXTS.items() if any(text in said for text in texts)), None)
        if number is None and any(text in said for text in _SOME_WRITE_FAILED):
            number = errno.EFBIG if _file_sizes_are_limited() else errno.ENOSPC
        if number is not None:
            return f"writing: {_REASONS[number]}"
        cause = cause.__cause__ or cause.__context__
    return None


def _file_sizes_are_limited() -> bool:
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
