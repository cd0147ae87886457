"""Brings model and task together: the task by its name, the model with the task's vocabulary."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from manticore.components.vocabulary import with_vocabulary
from manticore.tasks.task import load_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from manticore.tasks.task import Task

logger = logging.getLogger(__name__)


def resolve_task(
    task: str | Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, seed: int
) -> Task:
    """`task` itself, or the registered task of that name, read with `tokenizer` or else the model's own."""
    if not isinstance(task, str):
        return task
    return load_task(task, tokenizer=tokenizer or getattr(model, "tokenizer", None), seed=seed)


def take_vocabulary(model: PreTrainedModel, task: Task, seed: int) -> bool:
    """Give `model` fresh embeddings and heads where `task` has a vocabulary of its own and the model another.

    Returns:
        Whether the model was changed.
    """
    if task.vocab_size is None or model.config.vocab_size == task.vocab_size:
        return False
    logger.info("%s has its own %d tokens: fresh embeddings and heads", task.name, task.vocab_size)
    if getattr(model, "mixing", None) is None:
        with_vocabulary(model, task.vocab_size, seed=seed)
    else:
        model.with_vocabulary(task.vocab_size, seed=seed)
    return True
