"""What a plan needs to know about a task: its vocabulary, how long its examples are and how many it is scored on."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

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


def task_shape(choice: TaskChoice) -> TaskShape:
    """Read from the task's options, and, where the data are generated, from a handful of examples.

    Raises:
        ManticoreError: options that allow no data, or a task whose sizes cannot be known beforehand.
    """
    options = {**_defaults(choice.name), **choice.options}
    if choice.name.startswith("mad/"):
        from manticore.tasks.mad.examples import generate

        kind = choice.name.removeprefix("mad/")
        left_out = ("num_train_examples", "num_test_examples", "num_validation_examples", "data_seed")
        settings: dict[str, Any] = {name: value for name, value in options.items() if name not in left_out}
        inputs, _ = generate(kind, num_train_examples=2, num_test_examples=1, cache=False, **settings)["train"]
        return TaskShape(choice.name, int(settings["vocab_size"]), inputs.shape[1], int(options["num_test_examples"]))
    if choice.name.startswith("lra/"):
        from manticore.tasks.lra.examples import ARENAS

        arena = ARENAS.get(choice.name.removeprefix("lra/"))
        if arena is not None:
            length = options.get("length") or arena.length
            tests = options.get("num_test") or arena.counts[2]
            return TaskShape(choice.name, arena.vocab_size, int(length), int(tests), arena.sequences)
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
