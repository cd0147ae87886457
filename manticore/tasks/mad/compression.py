"""MAD compression: random tokens, and at the end one token whose vector must hold all of them.

Source: Poli et al. 2024, arXiv 2403.17844, as the public benchmark generates it, bit for bit.

Tokens 0..V-2 are content, V-1 ends every sequence. The targets are the inputs, position by position, so the task
says nothing about a model that sees its inputs when it answers: it is made for an auto-encoder, which answers from
the vector of the last position alone.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from manticore.making import checked
from manticore.option_types import Wanted
from manticore.tasks.mad.streams import Arrays, Streams


def compression(streams: Streams, count: int, *, training: bool, vocab_size: int, seq_len: int) -> Arrays:
    """`count` examples, int64, [count, seq_len]; training and test examples are alike, every position is scored."""
    inputs = np.full((count, seq_len), vocab_size - 1, np.int64)
    inputs[:, :-1] = streams.draws.integers(0, vocab_size - 1, (count, seq_len - 1))
    return inputs, inputs.copy()


@checked("{task}")
def check_compression(
    task: str,
    *,
    vocab_size: Annotated[int, Field(ge=2), Wanted("a whole number of at least 2", "vocab_size=2 or more")],
    seq_len: Annotated[int, Field(ge=2), Wanted("a whole number of at least 2", "seq_len=2 or more")],
) -> None:
    """Refuse options that allow no data."""


def compression_chance(*, vocab_size: int, seq_len: int) -> float:
    """Accuracy of a uniform guess at every position but the last, whose token is always the same."""
    return ((seq_len - 1) / (vocab_size - 1) + 1) / seq_len
