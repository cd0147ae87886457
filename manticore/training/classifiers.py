"""Gives a model the kind of head that a task with classes asks for, and loads models by the class that saved them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.components.loading import load_component, load_config, load_weights
from manticore.errors import ManticoreError, about
from manticore.hybrid.classification import (
    ManticoreClassifier,
    ManticoreForPairClassification,
    ManticoreForSequenceClassification,
    ManticoreForTokenClassification,
)
from manticore.hybrid.mixing import check_weights
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.stacks.classification import (
    StackClassifier,
    StackForPairClassification,
    StackForSequenceClassification,
    StackForTokenClassification,
)
from manticore.stacks.modeling import StackForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.tasks.task import Task

logger = logging.getLogger(__name__)

_HYBRIDS: dict[int, type[ManticoreClassifier]] = {
    1: ManticoreForSequenceClassification,
    2: ManticoreForPairClassification,
}
_STACKS: dict[int, type[StackClassifier]] = {1: StackForSequenceClassification, 2: StackForPairClassification}
"""Documents per example → class."""

_SAVED: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *_HYBRIDS.values(),
        ManticoreForTokenClassification,
        *_STACKS.values(),
        StackForTokenClassification,
    )
}


def with_head_for(model: PreTrainedModel, task: Task, seed: int) -> PreTrainedModel:
    """`model` itself where its head suits `task`, else a classifier with copies of its weights and a fresh head.

    Args:
        model: a hybrid, a stack, any causal LM of transformers, or a classifier made of one.
        task: with classes, or without: then `model` itself.
        seed: of the head.

    Raises:
        ManticoreError: a classifier for a task without classes, or a model that cannot be cut into blocks.
    """
    if task.num_classes is None:
        if is_classifier(model):
            raise ManticoreError(
                f"{task.name}: the model is a {type(model).__name__}, the task asks for a target at every position. "
                "Fix: give the causal model, or a task with classes"
            )
        return model
    if suits(model, task):
        return model
    made: PreTrainedModel
    if isinstance(model, StackForCausalLM | StackClassifier):
        made = _STACKS[task.documents].from_causal_lm(model, num_labels=task.num_classes, seed=seed)
    else:
        made = _HYBRIDS[task.documents].from_causal_lm(model, num_labels=task.num_classes, seed=seed)
    logger.info("%s has %d classes: a fresh head, %s", task.name, task.num_classes, type(made).__name__)
    return made


def is_classifier(model: object) -> bool:
    """Whether a model has a head for classes in place of one for tokens."""
    return isinstance(model, ManticoreClassifier | StackClassifier)


def suits(model: PreTrainedModel, task: Task) -> bool:
    """Whether the model has a head for exactly the classes of `task`."""
    kinds = (_HYBRIDS[task.documents], _STACKS[task.documents])
    return isinstance(model, kinds) and model.config.num_labels == task.num_classes


def load_saved(source: str | Path) -> PreTrainedModel:
    """A model from a folder or hub id: the classifier that was saved there, else a causal LM or hybrid.

    Raises:
        ManticoreError: there is no such model, it cannot be loaded safely, or its weights are not finite.
    """
    name = str(source)
    config = load_config(name)
    kind = _SAVED.get((config.architectures or [""])[0])
    model = load_component(source) if kind is None else load_weights(kind, name, config)
    if isinstance(model, ManticorePreTrainedModel):
        with about(name):
            check_weights(model.mixture_weights, model.config.num_blocks, model.config.num_components)
    return model


def loading_class(model: PreTrainedModel) -> str:
    """The name of the class that loads a saved model: of transformers where one of its ``Auto`` classes does."""
    if isinstance(model, ManticoreForSequenceClassification | StackForSequenceClassification):
        return "AutoModelForSequenceClassification"
    if isinstance(model, ManticoreForPairClassification | StackForPairClassification):
        return type(model).__name__
    return "AutoModelForCausalLM"
