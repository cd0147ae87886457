"""MAD in-context recall, plain and with noise: sequences of key-value pairs whose values must be recalled.

Source: Poli et al. 2024, arXiv 2403.17844, multi-query form, as the public benchmark generates it: the draws
from the generator come in the same order, so the same seed gives the same data bit for bit.

Tokens 0..k-1 are keys, k..u-1 values, u..u+noise-1 noise, where u = vocab_size - noise and k = u // 2. Every
key keeps one value within a sequence.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Amount, Wanted
from manticore.tasks.mad.streams import Arrays, Streams, gathered
from manticore.tasks.metrics import IGNORE


def recall(streams: Streams, count: int, *, training: bool, **options: int | float) -> Arrays:
    """`count` examples, see :func:`recall_example`: inputs and targets, int64, [count, seq_len - 1]."""
    return gathered(partial(recall_example, streams.draws, training=training, **options), count)  # type: ignore[arg-type]


def recall_example(
    rng: np.random.Generator,
    *,
    training: bool,
    vocab_size: int,
    seq_len: int,
    noise_vocab_size: int = 0,
    frac_noise: float = 0.0,
) -> tuple[list[int], list[int]]:
    """One example: inputs and targets, each of ``seq_len - 1`` tokens.

    Training scores every next token; a test example only the values of keys that occurred before.
    """
    usable = vocab_size - noise_vocab_size
    num_keys = usable // 2
    slots = seq_len // 2
    values: dict[int, int] = {}
    tokens: list[int] = []
    scored: list[int] = []
    # Drawn even without noise, and possibly the last, unused slot: the published data depend on it.
    kept_slot = int(rng.integers(0, slots))
    for slot in range(slots - 1):
        if frac_noise > 0 and slot != kept_slot and rng.random() < frac_noise:
            tokens += (usable + rng.integers(0, noise_vocab_size, size=2)).tolist()
            scored += (IGNORE, IGNORE)
            continue
        key = int(rng.integers(0, num_keys))
        known = key in values
        if not known:
            values[key] = int(rng.integers(num_keys, usable))
        tokens += (key, values[key])
        scored += (IGNORE, values[key] if known else IGNORE)
    if not values:
        raise ManticoreError(
            f"recall: an example held noise only (frac_noise={frac_noise}, seq_len={seq_len}). "
            "Fix: less noise or longer sequences"
        )
    # Keys in order of first appearance: dicts keep it.
    key = list(values)[int(rng.integers(0, len(values)))]
    tokens += (key, values[key])
    scored += (IGNORE, values[key])
    return tokens[:-1], tokens[1:] if training else scored[1:]


_Pairs = Annotated[
    int,
    Field(ge=4, multiple_of=2),
    Wanted("an even number of at least 4: keys and values come in pairs", "seq_len=4 or more, even"),
]
_Share = Annotated[
    float, Field(ge=0, lt=1), Wanted("a number from 0 to below 1", "give a share from 0 up to but not 1")
]


@checked("{task}")
def check_recall_options(
    task: str, *, vocab_size: int, seq_len: _Pairs, noise_vocab_size: Amount = 0, frac_noise: _Share = 0.0
) -> None:
    """Raise a ManticoreError for the first option that allows no data."""
    usable = vocab_size - noise_vocab_size
    if usable < 4:
        raise ManticoreError(
            f"{task}: vocab_size {vocab_size} with {noise_vocab_size} noise tokens leaves {usable} tokens "
            f"for keys and values, expected at least 4. Fix: vocab_size={noise_vocab_size + 4} or more"
        )
    if frac_noise > 0 and noise_vocab_size == 0:
        raise ManticoreError(f"{task}: frac_noise is {frac_noise} but noise_vocab_size is 0. Fix: noise_vocab_size=16")


def recall_chance(*, vocab_size: int, noise_vocab_size: int = 0, **_: object) -> float:
    """Accuracy of a uniform guess among the value tokens."""
    usable = vocab_size - noise_vocab_size
    return 1 / (usable - usable // 2)
