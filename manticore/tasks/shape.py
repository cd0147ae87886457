"""What a plan needs to know about a task: its vocabulary, how long its examples are and how many it is scored on."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from manticore import registry
from manticore.errors import ManticoreError
from manticore.schema.options import options_of
from manticore.schema.sections import TaskChoice


@dataclass(frozen=True)
class TaskShape:
    """Sizes of a task's examples."""

    name: str
    vocab_size: int | None
    """Rows of fresh embeddings and heads; None: the components keep theirs."""
    length: int
    """Tokens per example."""
    test_examples: int | None
    """None where that depends on the text."""
    sequences: int = 1
    """Documents of an example, each of that length."""
    validation_examples: int | None = None
    """None where that depends on the text."""
    train_examples: int | None = None
    """None where that depends on the text."""
    classes: bool = False
    """Whether an example belongs to a class, and no position has a target of its own."""
    autoencoder: bool = False
    """Whether it is made for models that read a whole sequence before they predict any of it."""

    @property
    def writes(self) -> bool:
        """Whether there is something that a model could write."""
        return not self.classes and not self.autoencoder


def task_shape(choice: TaskChoice) -> TaskShape:
    """What the task says of itself; of one that says nothing, its option ``length``.

    Raises:
        ManticoreError: options that allow no data, or a task whose sizes cannot be known beforehand.
    """
    options = {**_defaults(choice.name), **choice.options}
    says = registry.entries("task")[choice.name].shape
    if says is not None:
        module, attribute = says.split(":")
        shape: TaskShape = getattr(import_module(module), attribute)(choice.name, options)
        return shape
    length = options.get("length")
    if not isinstance(length, int) or length < 1:
        raise ManticoreError(
            f"plan: the length of examples of task {choice.name!r} cannot be told from its options (got {length!r}). "
            "Fix: plan with task.name=text and task.options.length set to it"
        )
    return TaskShape(choice.name, None, length, None)


def _defaults(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in (options_of("task", name) or {}).values():
        try:
            found[option.name] = ast.literal_eval(option.default)
        except (ValueError, SyntaxError):
            continue
    return found
