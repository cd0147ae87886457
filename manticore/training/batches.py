"""Batches of a task: rows of a dataset stacked into tensors of one fixed shape.

Every batch has the shape [B, T] with T the task's length: shorter examples are filled up on the right, where no
causal model can see the filling and no loss or metric counts it. So every training step costs the same FLOPs.
Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from manticore.errors import ManticoreError

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The target of a position that nothing is asked of."""

_FILLING = {"input_ids": 0, "targets": IGNORED, "attention_mask": 0}


@dataclass(frozen=True)
class Collator:
    """Stacks examples to ``input_ids``, ``targets`` and, where given, ``attention_mask``: each int64 ``[B, T]``.

    Examples with a ``label`` get a mask of what was filled up (for ``input_ids_2`` as well), and ``targets`` ``[B]``.
    """

    length: int
    """T, tokens per example."""
    also: tuple[str, ...] = ()
    """Further columns of examples with targets, a number for each of their positions."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if "label" in examples[0]:
            return self._labelled(examples)
        columns = [name for name in (*_FILLING, *self.also) if name in examples[0]]
        return {name: self._stack([example[name] for example in examples], _FILLING.get(name, 0)) for name in columns}

    def _labelled(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = {}
        for ids, mask in (("input_ids", "attention_mask"), ("input_ids_2", "attention_mask_2")):
            if ids in examples[0]:
                rows = [example[ids] for example in examples]
                batch[ids] = self._stack(rows, 0)
                batch[mask] = self._stack([np.ones(len(row), dtype=np.int64) for row in rows], 0)
        batch["targets"] = torch.tensor([int(example["label"]) for example in examples])
        return batch

    def _stack(self, rows: Sequence[Any], filling: int) -> Tensor:
        stacked = np.full((len(rows), self.length), filling, dtype=np.int64)
        for row, values in zip(stacked, rows):
            values = np.asarray(values)
            if len(values) > self.length:
                raise ManticoreError(
                    f"data: an example has {len(values)} tokens (expected at most {self.length}). "
                    "Fix: cut the examples, or give the task a larger length"
                )
            row[: len(values)] = values
        return torch.from_numpy(stacked)


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model reads of a batch: all but the targets."""
    return {name: value for name, value in batch.items() if name != "targets"}


def batches(
    dataset: Dataset, *, length: int, batch_size: int, max_examples: int | None = None, also: tuple[str, ...] = ()
) -> Iterator[dict[str, Tensor]]:
    """All examples (or the first `max_examples`) in order, `batch_size` at a time; the last batch may be smaller."""
    collate = Collator(length, also)
    rows = dataset.with_format("numpy")
    count = len(rows) if max_examples is None else min(max_examples, len(rows))
    for start in range(0, count, batch_size):
        columns = rows[start : min(start + batch_size, count)]
        names = list(columns)
        yield collate([dict(zip(names, values)) for values in zip(*columns.values())])
