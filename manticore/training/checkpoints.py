"""Checkpoints that are whole or not believed; and the guard of what may be resumed.

A run's checkpoints lie in one folder, ``checkpoint-<step>`` each, beside ``settings.json`` with the run's key: its
settings, and the digests of its inputs. A checkpoint is written aside, sealed with a manifest of digests, then renamed.
A run resumes with its own key only, from the newest checkpoint that still is as it was written.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from manticore.cache import MANIFEST, fault_of, seal
from manticore.errors import ManticoreError
from manticore.paths import refuse_links_out
from manticore.processes import is_first, process_count
from manticore.runs.ledger import (
    CONDITIONS,
    INPUTS,
    SETTINGS,
    key,
    read_record,
    refuse_another,
    without_fingerprints,
    write_record,
)

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Folder in which a checkpoint is written before it gets its name."""

CHECKPOINTS = "checkpoints"
"""The folder of a training's checkpoints, in the folder of the training."""
RECORD = "settings.json"
"""A run's key, beside its checkpoints."""

TENSORS = "trained.safetensors"
CLOCK = "seconds.json"

_COMPLETE = re.compile(r"checkpoint-(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    entries = [entry for entry in folder.iterdir() if entry.is_dir()]
    found = {int(match[1]): entry for entry in entries if (match := _COMPLETE.fullmatch(entry.name))}
    return [found[step] for step in sorted(found)]


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step after which `checkpoint` was written."""
    return int(checkpoint.name.rpartition("-")[2])


def publish(staged: Path, folder: Path, keep: int) -> None:
    """Seal a staged checkpoint, move it to its final name and delete all but the newest `keep`."""
    seal(staged, staged.name)
    final = folder / staged.name
    if final.is_dir():
        shutil.rmtree(final)
    final.unlink(missing_ok=True)
    os.replace(staged, final)
    for old in checkpoints(folder)[:-keep]:
        _discard(old)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def open_folder(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    stage: str,
    inputs: Mapping[str, str] | None = None,
    scan: bool = False,
    grows: bool = False,
) -> Path | None:
    """Make `folder` ready for a run and return the checkpoint to go on from, if there is one.

    Args:
        folder: where the run's checkpoints go.
        settings: everything that determines the run's numbers beside its inputs; JSON values.
        resume: whether the run may go on from checkpoints found there.
        stage: the caller's name in error messages.
        inputs: name → digest of what is trained and what it reads.
        scan: whether the model has layers that run by the selective scan.
        grows: whether a run of fewer ``steps`` is the beginning of this one, as it is where the rate stays constant.

    Raises:
        ManticoreError: checkpoints exist and `resume` is off, the run there had other settings or inputs, or a link in
            the folder leads elsewhere.
    """
    # a batch is cut by the number of processes, and each keeps the state of its own random stream
    now = key({"processes": process_count(), **settings}, inputs or {}, scan=scan)
    refuse_links_out(folder)
    found = checkpoints(folder)
    record = folder / RECORD
    last = None
    if found:
        if not resume:
            raise ManticoreError(
                f"{stage}: {folder} holds the checkpoints of an earlier run. "
                "Fix: resume it (resume=True) or choose another out"
            )
        before = read_record(record, "choose another out")
        if before is None:
            raise ManticoreError(f"{stage}: {record} is missing beside checkpoints. Fix: choose another out")
        sealed = INPUTS in before
        noted = {name: before.pop(name, {}) for name in (INPUTS, CONDITIONS)}
        before = {"processes": 1, **(before if sealed else without_fingerprints(before))}
        if grows and before.get("steps", 0) <= now[SETTINGS]["steps"]:
            before["steps"] = now[SETTINGS]["steps"]
        refuse_another({SETTINGS: before, **noted}, now, f"{stage}: {folder}", "choose another out")
        last = _newest_whole(found, stage, sealed)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        write_record(record, {**now[SETTINGS], INPUTS: now[INPUTS], CONDITIONS: now[CONDITIONS]})
    return last


def noted_inputs(folder: Path) -> dict[str, str] | None:
    """Digests of what the run in a folder began with; None where they are not noted."""
    record = read_record(folder / RECORD, "choose another out") or {}
    found: dict[str, str] | None = record.get(INPUTS)
    return found


def _newest_whole(found: list[Path], stage: str, sealed: bool) -> Path | None:
    """The newest checkpoint that can be believed; newer ones are removed, with a warning.

    Args:
        found: oldest first.
        sealed: whether all of them were written with a manifest; those of an older version are given one.
    """
    for number in reversed(range(len(found))):
        checkpoint = found[number]
        try:
            if sealed or (checkpoint / MANIFEST).exists():
                fault = fault_of(checkpoint, checkpoint.name)
            else:
                fault = None if _was_whole(checkpoint) else "parts of it are missing or damaged"
                if fault is None and is_first():
                    seal(checkpoint, checkpoint.name)
        except PermissionError as error:
            raise ManticoreError(
                f"{stage}: {error.filename} may not be read (permission denied). Fix: ask its owner, or chmod it"
            ) from error
        if fault is None:
            logger.info("%s: goes on from %s", stage, checkpoint)
            return checkpoint
        older = f"{found[number - 1].name}, if that is whole" if number else "the beginning"
        logger.warning("%s: %s is damaged (%s) and removed; goes on from %s", stage, checkpoint, fault, older)
        if is_first():
            _discard(checkpoint)
    return None


def _was_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint that has no manifest, of an older version, has all its parts, as far as they can tell."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        float(json.loads((checkpoint / CLOCK).read_text(encoding="utf-8")))
        with safe_open(checkpoint / TENSORS, "pt") as tensors:
            readable = all(tensors.get_tensor(name) is not None for name in tensors.keys())  # noqa: SIM118
        parts = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
        return (
            readable
            and len(parts) > 2
            and state["global_step"] == checkpoint_step(checkpoint)
            # archives with a checksum for each of their parts
            and all(zipfile.ZipFile(part).testzip() is None for part in parts)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError, zipfile.BadZipFile):
        return False


def _discard(checkpoint: Path) -> None:
    # renamed first: a deletion that is cut short must not leave half a checkpoint under a valid name
    doomed = checkpoint.parent / PARTIAL / checkpoint.name
    doomed.parent.mkdir(exist_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)
