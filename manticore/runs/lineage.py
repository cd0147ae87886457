"""Where a run's weights and data came from: digests of model files and of task data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manticore.cache import file_digest
from manticore.components.sources import model_folder, stated_license

if TYPE_CHECKING:
    from manticore.tasks.task import Task


def model_lineage(source: str, revision: str | None = None) -> dict[str, Any]:
    """Files of a checkpoint with their sha256, one digest over all, the licence its card states, the hub's commit."""
    folder = model_folder(source, revision)
    files: dict[str, str] = {}
    if folder is not None:
        names = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
        files = {path.name: file_digest(path) for path in names}
    whole = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in files.items()).encode())
    return {
        "source": source,
        "commit": folder.name if folder is not None and not Path(source).is_dir() else None,
        "license": stated_license(source, revision) if folder is not None else None,
        "files": files,
        "sha256": whole.hexdigest() if files else None,
    }


def data_lineage(task: Task) -> dict[str, str]:
    """Split → sha256 over its examples' input ids and targets, or classes."""
    digests: dict[str, str] = {}
    for split, rows in task.data.items():
        digest = hashlib.sha256()
        columns = [name for name in ("input_ids", "input_ids_2", "targets", "label") if name in rows.column_names]
        for batch in rows.select_columns(columns).with_format(None).iter(batch_size=1000):
            for column in columns:
                for example in batch[column]:
                    digest.update(np.asarray(example, dtype=np.int64).tobytes())
        digests[str(split)] = digest.hexdigest()
    return digests
