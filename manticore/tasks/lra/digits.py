"""Handwritten digits as pixel sequences: 1,797 images of 8 x 8 that scikit-learn ships, so real data without a network.

A proxy for the Image task of the Long Range Arena, sixteen times shorter: its results go under the name :data:`NAME`,
never under that of the benchmark. Pixels row by row, value 0 to 16 = id; no padding.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value

from manticore.errors import ManticoreError

NAME = "digits-64 (proxy)"
VOCABULARY = 17
LENGTH = 64
CLASSES = 10
COUNTS = (1_297, 250, 250)
"""Examples of train, validation and test; the last two hold every class equally often."""
SPLIT_SEED = 42
"""Of the split, which is always the same."""

_HELD_OUT = COUNTS[1] // CLASSES


def load() -> DatasetDict:
    """``train``, ``validation`` and ``test`` with the columns ``input_ids`` (64 ids below 17) and ``label`` (0 to 9).

    Raises:
        ManticoreError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ManticoreError(
            f"digits: scikit-learn, which holds the images, cannot be imported ({error}). "
            "Fix: pip install 'manticore-hybrids[digits]'"
        ) from error
    digits = load_digits()
    pixels, labels = digits.data.astype(np.uint8), digits.target.astype(np.int64)
    features = Features({"input_ids": List(Value("uint8")), "label": Value("int64")})
    return DatasetDict(
        {
            split: Dataset.from_dict({"input_ids": pixels[rows], "label": labels[rows]}, features=features)
            for split, rows in _splits(labels).items()
        }
    )


def _splits(labels: np.ndarray) -> dict[str, list[int]]:
    """Rows of each split: 25 random ones of each class for test and validation each, all in a random order."""
    uniform = random.Random(f"digits/{SPLIT_SEED}").random
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in range(CLASSES):
        rows = _shuffled(np.flatnonzero(labels == label).tolist(), uniform)
        splits["test"] += rows[:_HELD_OUT]
        splits["validation"] += rows[_HELD_OUT : 2 * _HELD_OUT]
        splits["train"] += rows[2 * _HELD_OUT :]
    return {split: _shuffled(rows, uniform) for split, rows in splits.items()}


def _shuffled(rows: list[int], uniform: Callable[[], float]) -> list[int]:
    # random.shuffle may change between Python versions, the numbers drawn do not
    return [row for _, row in sorted((uniform(), row) for row in rows)]
