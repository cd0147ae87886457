"""Output folders of verbs that train: a stop of any kind leaves what was done, and what to type to go on with it.

The folder is made at once and says in ``UNFINISHED.md`` what it holds. Checkpoints and finished runs go into it; what
the verb makes is written aside in it and moved into place at the end, and then the note goes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from manticore.cli.faults import exit_code_of
from manticore.cli.terminal import say
from manticore.errors import ManticoreError, NotFiniteError
from manticore.paths import expanded, refuse_links_out
from manticore.printing import without_passwords
from manticore.processes import is_first, wait_for_all
from manticore.writing import partial_path, refuse_existing, remove, remove_left_behind, sync, write_text

Resume = Annotated[bool, typer.Option("--resume", help="Go on with what a stopped one has left in the folder.")]

NOTE = "UNFINISHED.md"
_MADE = ".made"
_CHECKPOINTS, _RUNS = "**/checkpoint-*", "**/units.jsonl"
"""Finished work."""


def refuse_begun(out: str, resume: bool, *, kept: str | None = None) -> None:
    """Refuse a place where something is, unless it is unfinished and to be gone on with.

    Args:
        out: the place.
        resume: whether it is to be gone on with.
        kept: what several commands share there: its folder says that the place is theirs.

    Raises:
        ManticoreError: so it is.
    """
    path = expanded(out)
    if kept is not None and path.is_dir():
        names = [name for name in os.listdir(path) if not name.startswith(".")]
        if not names or NOTE in names or kept in names:
            return
    if not (path / NOTE).is_file():
        if resume and path.is_dir():
            raise ManticoreError(
                f"--out {out}: exists already and holds nothing unfinished, so there is nothing to resume. "
                "Fix: use it, or choose another name"
            )
        refuse_existing(out)
    elif not resume:
        raise ManticoreError(
            f"--out {out}: holds the work of a command that was stopped, nothing was changed. "
            f"Fix: the same command with --resume goes on with it ({path / NOTE}), or choose another name"
        )


@contextmanager
def unfinished(out: str, resume: bool) -> Iterator[tuple[Path, Path]]:
    """The folder ``out`` for what is kept when the verb is stopped, and one in it for what the verb makes.

    Of several processes that share a training the first one makes and moves; all may write.

    Raises:
        ManticoreError: it holds something else, or another process works in it.
    """
    from manticore.runs.lock import LOCK, locked

    path = expanded(out)
    made = path / _MADE
    with ExitStack() as stack:
        if is_first():
            refuse_begun(out, resume)
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
            if not (path / NOTE).is_file() and set(os.listdir(path)) - {LOCK, ".owner"}:
                # somebody else was faster
                refuse_existing(out)
            refuse_links_out(path)
            write_text(path / NOTE, _note())
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
        try:
            wait_for_all()
            yield path, made
            wait_for_all()
            if is_first():
                _move(made, path)
                (path / LOCK).unlink(missing_ok=True)
                (path / NOTE).unlink()
        except BaseException as stop:
            if is_first():
                _leave(path, stop)
            if isinstance(stop, KeyboardInterrupt) and path.is_dir():
                raise SystemExit(exit_code_of(stop)) from None
            raise


@contextmanager
def unfinished_by_several(out: str, kept: str) -> Iterator[tuple[Path, Path]]:
    """The same for commands that work together in ``out``, each with a folder for what it makes: the first one counts.

    Args:
        out: the place, the same for all.
        kept: the folder in it that they share.

    Raises:
        ManticoreError: it holds something else.
    """
    from filelock import FileLock

    from manticore.runs.lock import LOCK

    path = expanded(out)
    refuse_begun(out, False, kept=kept)
    path.mkdir(parents=True, exist_ok=True)
    alone = FileLock(path / LOCK)
    with ExitStack() as stack:
        with alone:
            refuse_begun(out, False, kept=kept)
            refuse_links_out(path)
            if not (path / kept).is_dir():
                write_text(path / NOTE, _note())
                (path / kept).mkdir()
            made = stack.enter_context(partial_path(path / _MADE, folder=True))
        try:
            yield path, made
            with alone:
                if (path / NOTE).is_file():
                    _move(made, path)
                    (path / NOTE).unlink()
                remove_left_behind(path)
        except KeyboardInterrupt as stop:
            say(f"stopped; what was done is kept in {path}, where others may be at work")
            say(f"next: {_again()}")
            raise SystemExit(exit_code_of(stop)) from None
        except BaseException:
            with alone:
                remove_left_behind(path)
                if not any(path.glob(_CHECKPOINTS)) and len([*path.glob(f".{_MADE}*")]) == 1:
                    remove(path)
            raise


def _leave(path: Path, stop: BaseException) -> None:
    """Keep the folder where work was finished in it, else remove it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # a launcher asks again
        signal.signal(number, signal.SIG_IGN)
    remove(path / _MADE)
    # a training that diverged would diverge again from its own checkpoints
    parts = (_RUNS,) if isinstance(stop, NotFiniteError) else (_RUNS, _CHECKPOINTS)
    if not any(any(path.glob(part)) for part in parts):
        remove(path)
    elif isinstance(stop, KeyboardInterrupt):
        say(f"stopped; what was done is kept in {path}")
        say(f"next: {_again()}")
    else:
        say(f"what was done is kept in {path}; go on with: {_again()}")


def _move(made: Path, path: Path) -> None:
    """What makes a folder a model comes last."""
    for entry in sorted(made.iterdir(), key=lambda entry: entry.name == "config.json"):
        for file in [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file()]:
            sync(file)
        target = path / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
    made.rmdir()


def _again() -> str:
    words = [without_passwords(word) for word in sys.argv[1:] if word != "--resume"]
    return shlex.join(["manticore", *words, "--resume"])


def _note() -> str:
    return f"""# Unfinished

A command has begun in this folder and not come to its end: it was stopped, or it is still at work. What it has done so
far is here, checkpoints and finished runs; what it was to make is not. To go on from there, in {os.getcwd()}:

    {_again()}
"""
