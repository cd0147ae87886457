"""Where a run's weights and data came from: digests of model files, of weights in memory, and of task data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manticore.branches import is_branch
from manticore.cache import content_key, file_digest
from manticore.components.gguf_files import checkpoint_folder
from manticore.components.sources import model_folder, stated_license
from manticore.tasks.metrics import SOURCES

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from manticore.tasks.task import Task

_NOT_THE_MODEL = ("transformers_version", "_name_or_path", "use_cache")
"""Fields of a configuration that a model's numbers do not depend on."""


def model_lineage(
    source: str, revision: str | None = None, digest_of: Callable[[Path], str] = file_digest
) -> dict[str, Any]:
    """Files of a checkpoint with their sha256, one digest over all, the licence its card states, the hub's commit."""
    fresh = is_branch(source)
    read = source if fresh else checkpoint_folder(source, revision=revision)
    folder = None if fresh else model_folder(read, revision)
    files: dict[str, str] = {}
    if folder is not None:
        names = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        files = {path.name: digest_of(path) for path in names}
    whole = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in files.items()).encode())
    return {
        "source": source,
        "commit": folder.name if folder is not None and not Path(read).is_dir() else None,
        "license": stated_license(read, revision) if folder is not None else None,
        "files": files,
        "sha256": whole.hexdigest() if files else None,
    }


def weights_digest(model: PreTrainedModel) -> str:
    """The sha256 of a model's configuration and of every parameter and buffer that is saved, in hex."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.is_meta:
            # its content waits elsewhere, and cannot be trained
            continue
        content = tensor.detach().cpu().contiguous().reshape(-1)
        if content.numel():
            digest.update(memoryview(content.view(torch.uint8).numpy()))
    return digest.hexdigest()


def training_inputs(model: PreTrainedModel, task: Task) -> dict[str, str]:
    """Digests of what a training starts from and reads."""
    return {"weights": weights_digest(model), **task_inputs(task)}


def task_inputs(task: Task) -> dict[str, str]:
    """The digest of the examples that a task trains on and is scored on, and of how they are read."""
    of_sources = [list(task.sources)] if task.sources else []
    return {"data": content_key([data_lineage(task), task.length, task.bos, *of_sources])}


def data_lineage(task: Task) -> dict[str, str]:
    """Split → sha256 over its examples' input ids and targets, or classes; of a mixture also those of each source."""
    found = {}
    for split, rows in task.data.items():
        if task.sources:
            # a name that comes before those of the splits: what is refused names the first that differs
            columns = rows.select_columns(["targets", SOURCES]).with_format("numpy")[:]
            targets, sources = (np.concatenate(list(columns[name])) for name in ("targets", SOURCES))
            for index, name in enumerate(task.sources):
                own = targets[sources == index].astype(np.int64)
                found[f"source {name}, {split}"] = hashlib.sha256(own.tobytes()).hexdigest()
        found[str(split)] = _rows_digest(rows)
    return found


def _rows_digest(rows: Dataset) -> str:
    digest = hashlib.sha256()
    columns = [name for name in ("input_ids", "input_ids_2", "targets", "label", SOURCES) if name in rows.column_names]
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        for column in columns:
            values = batch[column].combine_chunks()
            # one example after the other, as its ids are one after the other
            while hasattr(values, "flatten") and values.type.num_fields:
                values = values.flatten()
            digest.update(np.asarray(values).astype(np.int64).tobytes())
    return digest.hexdigest()
