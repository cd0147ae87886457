"""Documents as one stream of tokens, and the stream cut into packs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from manticore.errors import ManticoreError
from manticore.tasks.metrics import IGNORE
from manticore.tasks.roundtrip import check_round_trip


def token_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, *, name: str) -> np.ndarray:
    """The tokens of ``documents``, each followed by the end-of-text token: int64 [tokens].

    Decoded, the packs that it can be cut into are the source text; this is checked.

    Args:
        documents: strings.
        tokenizer: must have an end-of-text token.
        length: tokens of a pack.
        name: what errors call this text.

    Raises:
        ManticoreError: too short for one pack, no end-of-text token, or text that does not survive its tokenizer.
    """
    if tokenizer.eos_token_id is None:
        raise ManticoreError("text: the tokenizer has no end-of-text token (eos_token). Fix: set tokenizer.eos_token")
    if not documents:
        raise ManticoreError(f"text: the {name} is empty. Fix: give more text")
    stream, starts = _tokenize(documents, tokenizer)
    if len(stream) < length:
        raise ManticoreError(
            f"text: the {name} is too short ({len(stream)} tokens, expected at least length={length}). "
            "Fix: give more text, or shorter packs"
        )
    _check(documents, stream[: len(stream) // length * length], starts, tokenizer)
    return stream


def cut(stream: np.ndarray, length: int, first: int | None) -> dict[str, np.ndarray]:
    """The columns ``input_ids`` and ``targets`` of a stream's packs, each [packs, T]; what fills none is left out.

    Args:
        stream: [tokens].
        length: tokens per pack.
        first: the token that every pack begins with; None for none.
    """
    packs = len(stream) // length
    rows = stream[: packs * length].reshape(packs, length)
    if first is None:
        following = np.append(stream, IGNORE)[1 : packs * length + 1].reshape(packs, length)
        return {"input_ids": rows, "targets": following}
    return {"input_ids": np.insert(rows[:, :-1], 0, first, axis=1), "targets": rows}


def _tokenize(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """The stream of tokens, and where in it each document starts; the end-of-text token follows each."""
    # verbose=False: these are not model inputs, their length needs no warning.
    encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False, verbose=False)
    parts = [np.array([*ids, tokenizer.eos_token_id], dtype=np.int64) for ids in encoded["input_ids"]]
    starts = np.cumsum([0, *map(len, parts)])
    return np.concatenate(parts), starts


def _check(documents: Sequence[str], flat: np.ndarray, starts: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
    packed = [flat[start : end - 1] for start, end in pairwise(starts) if start < flat.size]
    check_round_trip(
        documents[: len(packed)],
        [ids.tolist() for ids in packed],
        tokenizer,
        last_is_cut=bool(starts[len(packed)] - 1 > flat.size),
    )
