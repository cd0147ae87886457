"""``mixture_weights.csv``: one row per step and block, in step with the trainer's own history.

Columns ``step,block,c0,...,c{K-1},entropy`` (K components; entropy of the row in nats). The file follows the
history that every checkpoint carries: it is written anew from there when training begins, so a resumed search
leaves the rows of an uninterrupted one, whatever a killed one had written after its last checkpoint.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOGGED_WEIGHTS = "mixture_weights"
"""Key of the ``[N][K]`` lists in the trainer's history."""


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of each row of ``weights`` ``[..., K]``, shape ``[...]``; zero at a vertex."""
    return torch.special.entr(weights).sum(-1)


class MixtureWeightsCsv(TrainerCallback):
    """Writes the weights that ``SearchTrainer`` logs.

    Args:
        path: the file; its folder exists.
        num_components: K.
    """

    def __init__(self, path: Path, num_components: int) -> None:
        self._path = path
        self._header = _line(["step", "block", *(f"c{k}" for k in range(num_components)), "entropy"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the header and the rows of the history so far."""
        if state.is_world_process_zero:
            aside = self._path.with_name(self._path.name + ".tmp")
            aside.write_text(self._header + "".join(_rows(entry) for entry in state.log_history))
            os.replace(aside, self._path)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Appends the rows of the newest entry."""
        if state.is_world_process_zero:
            with self._path.open("a") as file:
                file.write(_rows(state.log_history[-1]))


def _rows(entry: dict[str, Any]) -> str:
    weights = entry.get(LOGGED_WEIGHTS)
    if weights is None:
        return ""
    entropies = entropy(torch.tensor(weights)).tolist()
    return "".join(
        _line([entry["step"], block, *row, row_entropy])
        for block, (row, row_entropy) in enumerate(zip(weights, entropies))
    )


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
