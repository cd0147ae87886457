"""Tiny tasks with classes that training tests share: the class is told by the last token, examples differ in length."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, DatasetDict

from manticore.tasks.metrics import ClassMetrics
from manticore.tasks.task import Task

VOCABULARY = 13
LENGTH = 10
CLASSES = 3


def class_task(examples: int = 48, documents: int = 1, num_classes: int = CLASSES) -> Task:
    """The class is the last token modulo the number of classes; of two documents, whether their last tokens agree."""
    draw = np.random.default_rng(0)
    rows: dict[str, list] = {"input_ids": [], "label": []}
    for _ in range(examples):
        first = draw.integers(1, VOCABULARY, draw.integers(4, LENGTH + 1)).tolist()
        second = draw.integers(1, VOCABULARY, draw.integers(4, LENGTH + 1)).tolist()
        rows["input_ids"].append(first)
        if documents == 2:
            rows.setdefault("input_ids_2", []).append(second)
        rows["label"].append(int(first[-1] % 2 == second[-1] % 2) if documents == 2 else first[-1] % num_classes)
    split = Dataset.from_dict(rows)
    return Task(
        name="last token",
        vocab_size=VOCABULARY,
        length=LENGTH,
        data=DatasetDict(train=split, validation=split, test=split.select(range(min(21, examples)))),
        primary_metric="accuracy",
        higher_is_better=True,
        metric_state=ClassMetrics,
        num_classes=2 if documents == 2 else num_classes,
        documents=documents,
        pad_token_id=0,
    )
