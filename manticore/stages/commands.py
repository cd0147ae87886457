"""Words of the commands that stages suggest next, quoted for a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from manticore.schema.document import read_value
from manticore.tasks.text_sources import STDLIB

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FROM_SCRATCH = "--task mad/in-context-recall"
"""The task that is suggested for what reads no text."""


def task_words(task: str, options: Mapping[str, Any]) -> str:
    """A task and its options as they stand in a command."""
    words = ["--task", task]
    for name, value in options.items():
        plain = isinstance(value, str) and _reads_back(value)
        words += ["--task-option", f"{name}={value if plain else json.dumps(value)}"]
    return shlex.join(words)


def _reads_back(text: str) -> bool:
    """Whether a text without quotes is read as itself."""
    try:
        return bool(read_value(text) == text)
    except (YAMLError, ValueError):
        return False


def text_words(given: Mapping[str, Any]) -> str:
    """The task ``text`` as words of a command.

    Args:
        given: options of the task; what is their default is left out.
    """
    return task_words("text", {name: value for name, value in given.items() if value not in (None, STDLIB, "auto")})


def words_for(model: PreTrainedModel, **given: Any) -> str:
    """The task ``text``, with packs that a model has positions for.

    Args:
        model: what is to read them.
        given: options of the task.
    """
    from manticore.tasks.text_sources import LENGTH
    from manticore.training.prepare import positions

    limit = positions(model)
    return text_words({**given, "length": limit if limit is not None and limit < LENGTH else None})


def noted_task(note: Path, *, as_text: bool = False) -> str | None:
    """The task that a verb has noted beside a model, as words of a command; None where there is none.

    Args:
        note: the file.
        as_text: whether it holds options as they would stand in a command.
    """
    try:
        task = json.loads(note.read_text(encoding="utf-8"))["task"]
        options = task["options"].items()
        return task_words(task["name"], {name: read_value(str(v)) if as_text else v for name, v in options})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError):
        # a suggestion is not worth an error
        return None


def search_command(out: str, words: str) -> str:
    """What comes after a hybrid is there."""
    return f"manticore search {quote(out)} {words} -o {quote(out + '-searched')}"


def finetune_command(model: str, name: str, words: str) -> str:
    """Fine-tuning a model.

    Args:
        model: folder or hub id.
        name: what the tuned one is named after.
        words: the task.
    """
    return f"manticore finetune {quote(model)} {words} -o {quote(name + '-tuned')}"


def evaluate_command(model: str, words: str) -> str:
    """Scoring a model."""
    return f"manticore evaluate {quote(model)} {words}"
