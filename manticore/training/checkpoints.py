"""Checkpoints that are whole or absent: written aside, then renamed; and the guard of what may be resumed.

A run's checkpoints lie in one folder, ``checkpoint-<step>`` each, beside ``settings.json`` with everything that
determines the run's numbers. A run resumes only with the settings that it was started with.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError
from manticore.paths import refuse_links_out
from manticore.processes import is_first, process_count
from manticore.reading import read_object

PARTIAL = ".partial"
"""Folder in which a checkpoint is written before it gets its name."""

_COMPLETE = re.compile(r"checkpoint-(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = {int(match[1]): entry for entry in folder.iterdir() if (match := _COMPLETE.fullmatch(entry.name))}
    return [found[step] for step in sorted(found)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    found = checkpoints(folder)
    return found[-1] if found else None


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step after which `checkpoint` was written."""
    return int(checkpoint.name.rpartition("-")[2])


def publish(staged: Path, folder: Path, keep: int) -> None:
    """Move a staged checkpoint to its final name and delete all but the newest `keep`."""
    final = folder / staged.name
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    for old in checkpoints(folder)[:-keep]:
        # renamed first: a deletion that is cut short must not leave half a checkpoint under a valid name
        doomed = folder / PARTIAL / old.name
        doomed.parent.mkdir(exist_ok=True)
        os.replace(old, doomed)
        shutil.rmtree(doomed)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def open_folder(folder: Path, settings: Mapping[str, Any], *, resume: bool, stage: str) -> Path | None:
    """Make `folder` ready for a run and return the checkpoint to go on from, if there is one.

    Args:
        folder: where the run's checkpoints go.
        settings: everything that determines the run's numbers; JSON values.
        resume: whether the run may go on from checkpoints found there.
        stage: the caller's name in error messages.

    Raises:
        ManticoreError: checkpoints exist and `resume` is off, the run there had other settings, or a link in the folder
            leads elsewhere.
    """
    # a batch is cut by the number of processes, and each keeps the state of its own random stream
    settings = {"processes": process_count(), **json.loads(json.dumps(settings))}
    refuse_links_out(folder)
    found = last_checkpoint(folder)
    record = folder / "settings.json"
    if found is not None:
        if not resume:
            raise ManticoreError(
                f"{stage}: {folder} holds the checkpoints of an earlier run. "
                "Fix: resume it (resume=True) or choose another out"
            )
        before = {"processes": 1, **(read_object(record, "choose another out") or {})}
        for name in sorted({*before, *settings}):
            if before.get(name) != settings.get(name):
                raise ManticoreError(
                    f"{stage}: {folder} was started with {name}={before.get(name)!r} "
                    f"(got {settings.get(name)!r}). Fix: resume with the same settings or choose another out"
                )
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        write_json(record, settings)
    return found


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)
