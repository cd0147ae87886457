"""MAD fuzzy in-context recall: keys and values are motifs of several tokens.

Source: Poli et al. 2024, arXiv 2403.17844, multi-query form, as the public benchmark generates it: the draws
from the generator come in the same order, so the same seed gives the same data bit for bit.

The last token of the vocabulary pads on the left. Of the u = vocab_size - 1 others, 0..u//2-1 make keys, the rest
values. A motif is an ordered choice of 1 to K distinct tokens. Every example shuffles the lists of all motifs; here
indices are shuffled instead, which draws the same numbers and takes a fraction of the time (benchmarks/mad_data.py).
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from itertools import chain, permutations

import numpy as np

from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Count
from manticore.tasks.mad.streams import Arrays, Streams, gathered
from manticore.tasks.metrics import IGNORE

MAX_MOTIFS = 4_000_000
"""Motifs of one size that are kept in memory, at most."""

_Shuffled = dict[int, tuple[np.ndarray, np.ndarray]]
"""Size → (all motifs of that size [motifs, size], their shuffled order [motifs])."""


def fuzzy_recall(
    streams: Streams,
    count: int,
    *,
    training: bool,
    vocab_size: int,
    seq_len: int,
    k_motif_size: int,
    v_motif_size: int,
) -> Arrays:
    """`count` examples of ``seq_len`` tokens: inputs and targets, int64, [count, seq_len].

    Training scores every next token, padding included, and keys have 1 to ``k_motif_size`` tokens. In a test example
    keys have ``k_motif_size`` tokens; the values of keys that occurred before are scored, and the last value
    always, although a few examples in a hundred never show its key before (the benchmark is like that).
    """
    return gathered(
        partial(
            fuzzy_recall_example,
            streams.draws,
            training=training,
            vocab_size=vocab_size,
            seq_len=seq_len,
            k_motif_size=k_motif_size,
            v_motif_size=v_motif_size,
        ),
        count,
    )


def fuzzy_recall_example(
    rng: np.random.Generator,
    *,
    training: bool,
    vocab_size: int,
    seq_len: int,
    k_motif_size: int,
    v_motif_size: int,
) -> tuple[list[int], list[int]]:
    """One example: inputs and targets, each of ``seq_len`` tokens."""
    usable = vocab_size - 1
    key_sizes = range(1, k_motif_size + 1) if training else range(k_motif_size, k_motif_size + 1)
    keys = _shuffled(rng, 0, usable // 2, key_sizes)
    values = _shuffled(rng, usable // 2, usable, range(1, v_motif_size + 1))

    def draw_sizes() -> tuple[int, int]:
        key_size = int(rng.integers(1, k_motif_size + 1)) if training else k_motif_size
        return key_size, int(rng.integers(1, v_motif_size + 1))

    def draw(motifs: _Shuffled, size: int) -> tuple[int, ...]:
        table, order = motifs[size]
        return tuple(table[order[rng.integers(0, len(order))]].tolist())

    key_size, value_size = draw_sizes()
    probe, answer = draw(keys, key_size), draw(values, value_size)
    probe_at = int(rng.integers(0, seq_len - 2 * (key_size + value_size)))
    filled = seq_len - (key_size + value_size) - (k_motif_size + v_motif_size)
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    tokens: list[int] = []
    scored: list[int] = []
    while len(tokens) < filled:
        # both sizes are drawn in every round, whether they are used or not: the published data depend on it
        key_size, value_size = draw_sizes()
        is_due = len(tokens) >= probe_at and probe not in known
        key = probe if is_due else draw(keys, key_size)
        is_known = key in known
        if not is_known:
            known[key] = answer if key == probe else draw(values, value_size)
        tokens += (*key, *known[key])
        scored += (*[IGNORE] * len(key), *(known[key] if is_known else [IGNORE] * len(known[key])))
    tokens += (*probe, *answer)
    scored += (*[IGNORE] * len(probe), *answer)
    padding = seq_len + 1 - len(tokens)
    tokens = [vocab_size - 1] * padding + tokens
    return tokens[:-1], tokens[1:] if training else ([IGNORE] * padding + scored)[1:]


def _shuffled(rng: np.random.Generator, first: int, stop: int, sizes: range) -> _Shuffled:
    found = {}
    for size in sizes:
        table = _motifs(first, stop, size)
        order = np.arange(len(table))
        rng.shuffle(order)
        found[size] = (table, order)
    return found


@lru_cache(maxsize=16)
def _motifs(first: int, stop: int, size: int) -> np.ndarray:
    """All ordered choices of `size` tokens of ``first..stop-1``, int64, [motifs, size]."""
    flat = np.fromiter(chain.from_iterable(permutations(range(first, stop), size)), np.int64)
    return flat.reshape(-1, size)


@checked("{task}")
def check_fuzzy_recall(task: str, *, vocab_size: int, seq_len: int, k_motif_size: Count, v_motif_size: Count) -> None:
    """Raise a ManticoreError for the first option that allows no data."""
    usable = vocab_size - 1
    for option, size, tokens in (
        ("k_motif_size", k_motif_size, usable // 2),
        ("v_motif_size", v_motif_size, usable - usable // 2),
    ):
        if tokens < size:
            raise ManticoreError(
                f"{task}: {option} is {size}, but vocab_size {vocab_size} leaves {max(0, tokens)} tokens for it and "
                f"tokens do not repeat within a motif. Fix: vocab_size={2 * max(k_motif_size, v_motif_size) + 1}"
            )
        if math.perm(tokens, size) > MAX_MOTIFS:
            raise ManticoreError(
                f"{task}: {option} {size} of {tokens} tokens makes {math.perm(tokens, size):,} motifs, expected at "
                f"most {MAX_MOTIFS:,}. Fix: a smaller vocab_size or {option}"
            )
    shortest = 2 * (k_motif_size + v_motif_size) + 1
    if seq_len < shortest:
        raise ManticoreError(
            f"{task}: seq_len is {seq_len}, expected at least {shortest}: twice the longest key with its value, and "
            f"one token more. Fix: seq_len={shortest}"
        )


def fuzzy_recall_chance(*, vocab_size: int, **_: object) -> float:
    """Accuracy of a uniform guess among the tokens that values are made of."""
    usable = vocab_size - 1
    return 1 / (usable - usable // 2)
