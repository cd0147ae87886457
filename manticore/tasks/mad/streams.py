"""The random streams of the MAD benchmark, and examples gathered into arrays.

Source: Poli et al. 2024, arXiv 2403.17844, as the public benchmark draws: one PCG64 generator makes all training
examples and then all test examples; where blanks go in selective copying comes from numpy's global generator
(Mersenne Twister), seeded alike. Here that second stream is an object of its own and nothing global is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, int64, [examples, tokens]."""


@dataclass(frozen=True)
class Streams:
    """Where examples draw from; drawing moves them on."""

    draws: np.random.Generator
    blanks: np.random.RandomState

    @classmethod
    def of(cls, seed: int) -> Streams:
        """Both streams at their beginning."""
        return cls(np.random.default_rng(seed), np.random.RandomState(seed))


def gathered(example: Callable[[], tuple[list[int], list[int]]], count: int) -> Arrays:
    """`count` examples, one row each; ``[0, 0]`` where `count` is 0."""
    if count == 0:
        return np.empty((0, 0), np.int64), np.empty((0, 0), np.int64)
    first = example()
    inputs, targets = (np.empty((count, len(row)), np.int64) for row in first)
    inputs[0], targets[0] = first
    for row in range(1, count):
        inputs[row], targets[row] = example()
    return inputs, targets
