"""The classes of a classifier, as transformers keeps them in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Count

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


@checked("from_causal_lm")
def set_labels(
    config: Any,
    num_labels: Count | None,
    id2label: Mapping[int, str] | None = None,
    problem_type: Problem | None = None,
) -> None:
    """Write the classes into a configuration.

    Raises:
        ManticoreError: none at all, two different counts, names that are not those of classes 0 to C - 1, or another
            kind of problem.
    """
    if id2label is not None and (
        not id2label
        or not isinstance(id2label, Mapping)
        or sorted(map(str, id2label)) != sorted(map(str, range(len(id2label))))
        or len(set(id2label.values())) < len(id2label)
    ):
        raise ManticoreError(
            f"from_causal_lm: id2label is {id2label!r} (expected the numbers from 0 on, each with a name of its own). "
            "Fix: id2label={0: 'negative', 1: 'positive'}"
        )
    if id2label is not None and num_labels not in (None, len(id2label)):
        raise ManticoreError(
            f"from_causal_lm: num_labels is {num_labels}, id2label names {len(id2label)}. Fix: give one of them"
        )
    count = len(id2label) if id2label is not None else num_labels
    if count is not None:
        config.num_labels = count
    if id2label is not None:
        config.id2label = {int(index): name for index, name in id2label.items()}
        config.label2id = {name: index for index, name in config.id2label.items()}
    config.problem_type = problem_type
