"""MAD memorization: facts that are the same in all sequences and must be learned by heart.

Source: Poli et al. 2024, arXiv 2403.17844, as the public benchmark generates it, bit for bit.

Token V-1 is where a value is to be put. Of the others, 0..k-1 are keys and k..V-2 values, k = (V-1)//2; both lists
are shuffled once and paired in order. A sequence is key, put, key, put, …; the key's value is scored at the put token.
Training and test share the facts: nothing can be inferred from the context, and a fact that no training example
shows cannot be known. With 256 training examples that bounds the accuracy for vocabularies of 2,048 and more.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from manticore.making import checked
from manticore.option_types import Seed, Wanted
from manticore.tasks.mad.streams import Arrays, Streams
from manticore.tasks.metrics import IGNORE


def memorization(
    streams: Streams, count: int, *, training: bool, vocab_size: int, seq_len: int, map_seed: int
) -> Arrays:
    """`count` examples, int64, [count, seq_len]; training and test examples are alike."""
    keys, values = facts(vocab_size, map_seed)
    drawn = np.empty((count, seq_len // 2), np.int64)
    for row in range(count):
        # a number that is not used: the published data depend on it
        streams.draws.integers(0, seq_len // 2)
        drawn[row] = streams.draws.integers(0, len(keys), seq_len // 2)
    inputs = np.full((count, seq_len), vocab_size - 1, np.int64)
    inputs[:, 0::2] = keys[drawn]
    targets = np.full((count, seq_len), IGNORE, np.int64)
    targets[:, 1::2] = values[drawn]
    return inputs, targets


def facts(vocab_size: int, map_seed: int) -> Arrays:
    """Keys and the values that belong to them, int64, each ``[(vocab_size - 1) // 2]``."""
    rng = np.random.default_rng(map_seed)
    keys = np.arange((vocab_size - 1) // 2)
    values = np.arange(len(keys), vocab_size - 1)
    rng.shuffle(keys)
    rng.shuffle(values)
    return keys, values[: len(keys)]


_Vocabulary = Annotated[
    int,
    Field(ge=3),
    Wanted("a whole number of at least 3: a key, a value and the token between them", "vocab_size=3 or more"),
]

_Pairs = Annotated[
    int,
    Field(ge=2, multiple_of=2),
    Wanted("an even number of at least 2: every key has a place for its value", "seq_len=2 or more, even"),
]


@checked("{task}")
def check_memorization(task: str, *, vocab_size: _Vocabulary, seq_len: _Pairs, map_seed: Seed) -> None:
    """Raise a ManticoreError for the first option that allows no data."""


def memorization_chance(*, vocab_size: int, **_: object) -> float:
    """Accuracy of a uniform guess among the value tokens."""
    return 1 / (vocab_size - 1 - (vocab_size - 1) // 2)
