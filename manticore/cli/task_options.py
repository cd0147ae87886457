"""The options of a task, or of anything with a name, as words of a command."""

from __future__ import annotations

from typing import Any

from manticore.cli.parameters import pairs
from manticore.errors import ManticoreError, SeveralErrors
from manticore.schema.consistency import mixture, options
from manticore.schema.sections import TaskChoice
from manticore.schema.validation import findings


def checked_task(task: str, task_option: list[str] | None) -> dict[str, Any]:
    """The task's options, after the checks a recipe would make: before anything heavy is imported.

    Raises:
        ManticoreError: no such task, or an option that it does not have.
    """
    from manticore import registry

    if (refused := registry.refusal("task", task)) is not None:
        raise ManticoreError(f"--task: {refused}")
    chosen = pairs(task_option or [], "--task-option")
    _, found = findings(TaskChoice, {"name": task, "options": chosen})
    if found:
        raise SeveralErrors([f"--task-option {path[-1]}: {text}" for path, text in found])
    check_options("--task-option", "task", task, chosen)
    if found := list(mixture((), task, chosen)):
        raise SeveralErrors([f"--task-option {path[-1]}: {text}" for path, text in found])
    return chosen


def check_options(flag: str, kind: str, name: str, given: dict[str, Any]) -> None:
    """Refuse options that a registered thing does not have.

    Raises:
        ManticoreError: there are such.
    """
    found = [f"{flag} {path[-1]}: {text}" for path, text in options((), kind, name, given)]
    if found:
        raise SeveralErrors(found)
