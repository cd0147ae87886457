"""A tiny task that training tests share."""

import numpy as np
from datasets import Dataset, DatasetDict

from manticore.tasks.metrics import TokenMetrics
from manticore.tasks.task import Task

VOCABULARY = 13
LENGTH = 10


def copying_task(examples: int = 24, vocab_size: int | None = VOCABULARY, length: int = LENGTH) -> Task:
    """Predict the token before last; the first position has no target."""
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (examples, length))
    targets = np.roll(rows, 1, axis=1)
    targets[:, 0] = -100
    split = Dataset.from_dict({"input_ids": rows.tolist(), "targets": targets.tolist()})
    return Task(
        name="copying",
        vocab_size=vocab_size,
        length=length,
        data=DatasetDict(train=split, validation=split, test=split.select(range(7))),
        primary_metric="accuracy",
        higher_is_better=True,
        metric_state=TokenMetrics,
    )
