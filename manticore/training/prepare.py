"""Brings model and task together: the task by its name, the model with the task's vocabulary, and what cannot be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from manticore.components.loading import own_tokenizer
from manticore.components.positions import context_length, tabulated_positions
from manticore.components.vocabulary import with_vocabulary
from manticore.errors import ManticoreError
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.tasks.task import Task, load_task
from manticore.training.batches import IGNORED
from manticore.training.classifiers import with_head_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 10_000


def resolve_task(
    task: str | Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, seed: int, *, stage: str
) -> Task:
    """`task` itself, or the registered task of that name, read with `tokenizer` or else the model's own.

    Raises:
        ManticoreError: `model` is not a model, `task` is not a task, its examples are too long for the model, or it is
            made for another kind of model.
    """
    if not isinstance(model, nn.Module):
        raise ManticoreError(
            f"{stage}: {model!r} is not a model. Fix: load it first, with AutoModelForCausalLM.from_pretrained"
        )
    if isinstance(task, str):
        task = load_task(task, tokenizer=tokenizer or own_tokenizer(model), seed=seed)
    elif not isinstance(task, Task):
        raise ManticoreError(f"{stage}: {task!r} is not a task. Fix: give the name of one; `manticore ls tasks`")
    check_length(model, task, stage=stage)
    check_backbone(model, task, stage=stage)
    check_vocabulary(model, task, stage=stage)
    check_targets(model, task, stage=stage)
    return task


def positions(model: PreTrainedModel) -> int | None:
    """The most tokens that all of `model`'s components have positions for; None where no family ends."""
    limits = [tabulated_positions(each) for each in _components(model)]
    return min((limit for limit in limits if limit is not None), default=None)


def check_length(model: PreTrainedModel, task: Task, *, stage: str) -> None:
    """Refuse a task whose examples have more tokens than the model has positions.

    Where a family goes on beyond the length that its configuration names (rotary positions), a warning says so.

    Raises:
        ManticoreError: they have.
    """
    limit = positions(model)
    if limit is not None and task.length > limit:
        raise ManticoreError(
            f"{stage}: examples of {task.name} have {task.length} tokens, but the model has {limit} positions. "
            "Fix: a model with more positions, or shorter examples where the task has an option for that"
        )
    for each in _components(model):
        named = context_length(each.config)
        if named is not None and task.length > named:
            logger.warning(
                "%s: examples of %s have %d tokens, the configuration of %s names %d: positions beyond are new to it",
                stage,
                task.name,
                task.length,
                each.config.model_type,
                named,
            )


def _components(model: PreTrainedModel) -> list[PreTrainedModel]:
    """The components that a hybrid has kept; of another model, the model itself."""
    runners = getattr(model, "runners", None)
    return [model] if runners is None else [runner.model for runner in runners if runner is not None]


def check_tokens(largest: int, model: PreTrainedModel, what: str) -> None:
    """Refuse tokens that the model has no row of embeddings for.

    Args:
        largest: id of a token.
        model: that would read it.
        what: whose tokens they are, for the message.

    Raises:
        ManticoreError: the model has fewer rows.
    """
    rows = model.config.get_text_config().vocab_size
    if largest >= rows:
        raise ManticoreError(
            f"{what} knows more tokens than the model has rows (got id {largest}, expected ids below {rows}). "
            "Fix: give model and tokenizer of one checkpoint"
        )


def check_vocabulary(model: PreTrainedModel, task: Task, *, stage: str) -> None:
    """Refuse a task that is read with a tokenizer, where its examples hold tokens that the model has no row for.

    Raises:
        ManticoreError: they do.
    """
    if task.vocab_size is not None:
        return
    import pyarrow.compute as pc

    columns = ("input_ids", "input_ids_2")[: task.documents]
    largest = 0
    for rows in task.data.values():
        for batch in rows.select_columns(list(columns)).with_format("arrow").iter(_ROWS_AT_ONCE):
            largest = max(largest, *(pc.max(pc.list_flatten(batch[name])).as_py() or 0 for name in columns))
    check_tokens(largest, model, f"{stage}: the tokenizer of {task.name}")


def check_targets(model: PreTrainedModel, task: Task, *, stage: str) -> None:
    """Refuse targets that are not the next token where the model weighs its components by how they predict that.

    Classes are refused where a head for them would be made.

    Raises:
        ManticoreError: an example has such a target.
    """
    follows = isinstance(model, ManticorePreTrainedModel) and model.output.follows_text
    if not follows or task.num_classes is not None:
        return
    import pyarrow.compute as pc

    for split, rows in task.data.items():
        for batch in rows.select_columns(["input_ids", "targets"]).with_format("arrow").iter(_ROWS_AT_ONCE):
            ids, targets = (pc.list_flatten(batch[name]).to_numpy() for name in ("input_ids", "targets"))
            other = (targets[:-1] != ids[1:]) & (targets[:-1] != IGNORED)
            # the last position of an example predicts what none of it holds
            other[pc.list_value_length(batch["input_ids"]).to_numpy().cumsum()[:-1] - 1] = False
            if other.any():
                raise ManticoreError(
                    f"{stage}: targets of {task.name} ({split}) are not the next tokens of its examples, and this "
                    f"hybrid's output {model.config.output!r} weighs components by how they predict those. "
                    "Fix: output probabilities or gate, or another task"
                )


def check_backbone(model: PreTrainedModel, task: Task, *, stage: str) -> None:
    """Refuse a task that is made for another kind of model: a causal one could copy what it should restore.

    Raises:
        ManticoreError: it is.
    """
    # of the class: a submodule of that name is something else
    backbone = getattr(type(model), "backbone", "causal")
    if backbone != task.backbone:
        raise ManticoreError(
            f"{stage}: {task.name} is made for models with backbone {task.backbone!r} (got {backbone!r}). "
            "Fix: another model, or another task"
        )


def fit_to_task(model: PreTrainedModel, task: Task, seed: int) -> PreTrainedModel:
    """A model that `task` can train and score: with the task's vocabulary, and its classes where it has some.

    A task with classes gives a model without a head for them a new one, and that model is another: the given one stays
    as it is. Else the model is changed in place, where the task has a vocabulary of its own and the model another.
    """
    model = with_head_for(model, task, seed)
    _take_vocabulary(model, task, seed)
    if task.num_classes is not None:
        model.config.pad_token_id = task.pad_token_id
    return model


def _take_vocabulary(model: PreTrainedModel, task: Task, seed: int) -> None:
    if task.vocab_size is None or model.config.vocab_size == task.vocab_size:
        return
    logger.info("%s has its own %d tokens: fresh embeddings and heads", task.name, task.vocab_size)
    if isinstance(model, ManticorePreTrainedModel):
        model.with_vocabulary(task.vocab_size, seed=seed)
    else:
        with_vocabulary(model, task.vocab_size, seed=seed)
