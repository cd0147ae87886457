"""The classes of a classifier, as transformers keeps them in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manticore.errors import ManticoreError


def set_labels(
    config: Any, num_labels: int | None, id2label: Mapping[int, str] | None = None, problem_type: str | None = None
) -> None:
    """Write the classes into a configuration.

    Raises:
        ManticoreError: none at all, or two different counts.
    """
    if id2label is not None and num_labels not in (None, len(id2label)):
        raise ManticoreError(
            f"from_causal_lm: num_labels is {num_labels}, id2label names {len(id2label)}. Fix: give one of them"
        )
    count = len(id2label) if id2label is not None else num_labels
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ManticoreError(f"from_causal_lm: num_labels is {count!r} (expected a whole number). Fix: give 1 or more")
    if count is not None:
        config.num_labels = count
    if id2label is not None:
        config.id2label = {int(index): name for index, name in id2label.items()}
        config.label2id = {name: index for index, name in config.id2label.items()}
    config.problem_type = problem_type
