"""Brings model and task together: the task by its name, the model with the task's vocabulary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from manticore.components.loading import load_tokenizer
from manticore.components.vocabulary import with_vocabulary
from manticore.hybrid.modeling import ManticoreForCausalLM
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
    return load_task(task, tokenizer=tokenizer or own_tokenizer(model), seed=seed)


def own_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a hybrid carries, or that lies in the folder which a model was loaded from."""
    carried = getattr(model, "tokenizer", None)
    folder = model.config.name_or_path or ""
    if carried is not None or not Path(folder, "config.json").is_file():
        return carried
    return load_tokenizer(folder)


def take_vocabulary(model: PreTrainedModel, task: Task, seed: int) -> bool:
    """Give `model` fresh embeddings and heads where `task` has a vocabulary of its own and the model another.

    Returns:
        Whether the model was changed.
    """
    if task.vocab_size is None or model.config.vocab_size == task.vocab_size:
        return False
    logger.info("%s has its own %d tokens: fresh embeddings and heads", task.name, task.vocab_size)
    if isinstance(model, ManticoreForCausalLM):
        model.with_vocabulary(task.vocab_size, seed=seed)
    else:
        with_vocabulary(model, task.vocab_size, seed=seed)
    return True
