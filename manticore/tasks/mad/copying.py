"""MAD selective copying: repeat the tokens of a sequence in order, without the blanks between them.

Source: Poli et al. 2024, arXiv 2403.17844, as the public benchmark generates it, bit for bit.

Tokens 0..V-3 are content, V-2 is the blank, V-1 asks for the copy. A sequence is n content tokens with
seq_len - 2n - 1 blanks strewn between them, the copy token, and n blanks at which the content is scored. Every
blank goes before a content token drawn at random, so none stands between the last of them and the copy token.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Count, Wanted
from manticore.tasks.mad.streams import Arrays, Streams
from manticore.tasks.metrics import IGNORE


def selective_copying(
    streams: Streams, count: int, *, training: bool, vocab_size: int, seq_len: int, num_tokens_to_copy: int
) -> Arrays:
    """`count` examples, int64, [count, seq_len]; training and test examples are alike."""
    blank, copy = vocab_size - 2, vocab_size - 1
    blanks = seq_len - 2 * num_tokens_to_copy - 1
    content = streams.draws.integers(0, blank, (count, num_tokens_to_copy))
    before = streams.blanks.randint(0, num_tokens_to_copy, (count, blanks))
    # blanks_at[e, j]: how many stand directly before content token j of example e
    rows = np.arange(count)[:, None]
    cells = (rows * num_tokens_to_copy + before).ravel()
    blanks_at = np.bincount(cells, minlength=count * num_tokens_to_copy).reshape(count, num_tokens_to_copy)
    places = np.arange(num_tokens_to_copy) + blanks_at.cumsum(axis=1)
    inputs = np.full((count, seq_len), blank, np.int64)
    inputs[rows, places] = content
    inputs[:, seq_len - num_tokens_to_copy - 1] = copy
    targets = np.full((count, seq_len), IGNORE, np.int64)
    targets[:, seq_len - num_tokens_to_copy :] = content
    return inputs, targets


_Vocabulary = Annotated[
    int,
    Field(ge=3),
    Wanted("a whole number of at least 3: a blank, the copy token and content", "vocab_size=3 or more"),
]


@checked("{task}")
def check_selective_copying(task: str, *, vocab_size: _Vocabulary, seq_len: int, num_tokens_to_copy: Count) -> None:
    """Raise a ManticoreError for the first option that allows no data."""
    if seq_len < 2 * num_tokens_to_copy + 2:
        raise ManticoreError(
            f"{task}: seq_len is {seq_len}, expected at least {2 * num_tokens_to_copy + 2}: twice the "
            f"{num_tokens_to_copy} tokens to copy, the copy token and a blank. "
            f"Fix: seq_len={2 * num_tokens_to_copy + 2} or a smaller num_tokens_to_copy"
        )


def selective_copying_chance(*, vocab_size: int, **_: object) -> float:
    """Accuracy of a uniform guess among the content tokens."""
    return 1 / (vocab_size - 2)
