"""Score a model on a task: the same function for parents, supernets and hybrids. Nothing that trains is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manticore.components.loaded_weights import refuse_not_finite
from manticore.errors import ManticoreError
from manticore.keywords import takes
from manticore.settings import Evaluate
from manticore.training.classifiers import suits
from manticore.training.prepare import resolve_task
from manticore.training.scoring import score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from manticore.tasks.task import Task


@takes(Evaluate)
def evaluate(
    model: PreTrainedModel,
    task: str | Task,
    settings: Evaluate,
    *,
    split: str = "test",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, float]:
    """Score `model` on a split of `task`; batch by batch, so that logits are never held for more than one batch.

    Args:
        model: a hybrid or any causal LM of transformers, for a task with classes a classifier; its modules' modes are
            as before afterwards.
        task: a task, or the name of a registered one.
        settings: the options below in one object.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        tokenizer: for tasks that read text; None takes the hybrid's.

    Returns:
        Metric name → value.

    Raises:
        ManticoreError: no such split, the model has another vocabulary than the task, or its weights are not finite,
            or a score is NaN.
    """
    task = resolve_task(task, model, tokenizer, seed=0, stage="evaluate")
    if split not in task.data:
        raise ManticoreError(
            f"evaluate: {task.name} has no split {split!r} (it has {', '.join(task.data)}). Fix: choose one of them"
        )
    if task.vocab_size is not None and model.config.vocab_size != task.vocab_size:
        raise ManticoreError(
            f"evaluate: {task.name} has a vocabulary of {task.vocab_size} tokens, the model one of "
            f"{model.config.vocab_size}. "
            "Fix: fine-tune the model on the task first"
        )
    if task.num_classes is not None and not suits(model, task):
        raise ManticoreError(
            f"evaluate: {task.name} has {task.num_classes} classes, but this {type(model).__name__} has no head "
            "for them. Fix: fine-tune the model on the task first, and score result.model"
        )
    refuse_not_finite(model, "evaluate")
    return score(model, task, split, batch_size=settings.batch_size, max_examples=settings.max_examples)[0]
