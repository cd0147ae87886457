"""Scoring a model on a split of a task, batch by batch, so that logits are never held for more than one batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manticore.errors import NotFiniteError
from manticore.kernels.mamba import fast_scan
from manticore.modes import kept_modes
from manticore.tasks.metrics import IGNORE, SOURCES, token_losses
from manticore.training.batches import batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.tasks.task import Task


def score(
    model: PreTrainedModel, task: Task, split: str, *, batch_size: int, max_examples: int | None, each: bool = False
) -> tuple[dict[str, float], Tensor]:
    """Metrics of a model whose vocabulary and head are those of the task; its modules' modes are as before afterwards.

    Args:
        model: to score.
        task: with the split.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        batch_size: examples per forward pass; it does not change the result.
        max_examples: score only the first ones.
        each: also return every example's loss.

    Returns:
        Metric name → value, where components can be dropped also how many read a token, ``components_per_token``; with
        ``each``, the mean loss of each example over its scored positions, in nats, float64 ``[examples]``, 0 where
        nothing is scored; else an empty tensor.

    Raises:
        NotFiniteError: a score is NaN.
    """
    device, marks = next(model.parameters()).device, (SOURCES,) if task.sources else ()
    state, losses = task.metric_state(), [torch.empty(0, dtype=torch.float64)]
    reads = tokens = 0
    with torch.no_grad(), kept_modes(model), fast_scan(model):
        model.eval()
        sized: Any = {"batch_size": batch_size, "max_examples": max_examples}
        for batch in batches(task.data[split], length=task.length, also=marks, **sized):
            targets, marked = batch.pop("targets").to(device), [batch.pop(name).to(device) for name in marks]
            output = model(**{n: v.to(device) for n, v in batch.items()}, use_cache=False)
            logits, readers = output.logits, getattr(output, "components_read", None)
            if readers is not None:
                reads, tokens = reads + int(readers.sum()), tokens + int(readers.any(-1).sum())
            state.update(logits, targets, *marked)
            if each:
                losses.append(_example_losses(logits, targets))
    scores = state.compute()
    if tokens:
        scores["components_per_token"] = reads / tokens
    for name, value in scores.items():
        if math.isnan(value):
            raise NotFiniteError(
                f"evaluate: {name} on {task.name}, {split}, is NaN, though all weights are finite. "
                "Fix: a higher precision (float32), or examples that have targets"
            )
    return scores, torch.cat(losses)


def _example_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """``[B]`` of logits ``[B, T, V]`` and targets ``[B, T]``, or of classes: ``[B, C]`` and ``[B]``."""
    if targets.dim() == 1:
        logits, targets = logits[:, None], targets[:, None]
    counts = (targets != IGNORE).sum(1).clamp(min=1)
    return (token_losses(logits, targets).sum(1) / counts).cpu()
