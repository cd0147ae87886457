"""A teacher's answers kept on the disk: exact logits of every training example, each computed once.

One file of float32 ``[N, T, V]``, in an entry that is checked against its digest before it is believed. It is written
in the order of the rows, before the training begins, so that a killed run reads what an unstopped one would have read.
Shapes: B batch, T tokens, V vocabulary, N training examples.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from manticore.cache import Entry, content_key
from manticore.errors import ManticoreError, told
from manticore.processes import process_count
from manticore.training.batches import batches

if TYPE_CHECKING:
    from manticore.tasks.task import Task
    from manticore.training.teacher import Teacher

ANSWER_BYTES = 4
"""Of an answer to one token, per entry of the vocabulary."""
_SPARED = 0.1
"""Share of the disk's free room that is left alone."""


class Answers:
    """The logits of a training split.

    Args:
        folder: where the file is, or goes.
        teacher: ready to answer.
        task: the data.
        batch_size: of the passes that compute them.
        device: that they are computed on.

    Raises:
        ManticoreError: no room on the disk, or several processes, which would each compute them.
    """

    def __init__(self, folder: Path, teacher: Teacher, task: Task, *, batch_size: int, device: torch.device) -> None:
        shape = (len(task.data["train"]), task.length, teacher.rows)
        if process_count() > 1:
            raise ManticoreError("distill: keep_answers is for one process. Fix: keep_answers=False, or one process")
        rows = list(batches(task.data["train"], length=task.length, batch_size=batch_size))
        keys = [key for batch in rows for key in _keys(batch)]
        read = hashlib.blake2b(b"".join(keys)).hexdigest()
        entry = Entry(folder, content_key([teacher.digest, read, shape, batch_size, device.type]), ".logits")
        with told(
            "distill: answers of the teacher", "cannot be kept", "free disk space, or keep_answers=False", OSError
        ):
            path = entry.find()
            if path is None:
                _refuse_no_room(folder, ANSWER_BYTES * shape[0] * shape[1] * shape[2])
                with entry.aside() as aside:
                    with aside.open("wb") as file:
                        for batch in rows:
                            here = {name: value.to(device) for name, value in batch.items()}
                            file.write(teacher.logits(here).float().cpu().numpy().tobytes())
                    path = entry.keep(aside)
            self._kept = np.memmap(path, dtype=np.float32, mode="r", shape=shape)
        self._place = {key: n for n, key in enumerate(keys)}

    def of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """``[B, T, V]`` of training examples, on their device."""
        found = self._kept[[self._place[key] for key in _keys(batch)]]
        return torch.from_numpy(np.ascontiguousarray(found)).to(batch["input_ids"].device)


def _refuse_no_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    room = int(shutil.disk_usage(folder).free * (1 - _SPARED))
    if needed > room:
        raise ManticoreError(
            f"distill: the teacher's answers take {needed / 2**30:,.1f} GiB, {folder} has room for "
            f"{room / 2**30:,.1f} GiB. Fix: keep_answers=False, or fewer training examples"
        )


def _keys(batch: Mapping[str, Tensor]) -> list[bytes]:
    """What stands for each example: a digest of all that a model reads of it."""
    read = [batch[name].cpu().numpy() for name in ("input_ids", "attention_mask") if name in batch]
    return [hashlib.blake2b(b"".join(row.tobytes() for row in rows), digest_size=16).digest() for rows in zip(*read)]
