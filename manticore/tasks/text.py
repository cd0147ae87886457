"""Next-token prediction on text: documents become packs of equal length.

Documents are joined by the end-of-text token into one stream, which is cut into packs of T tokens. The target of a
position is the next token of the stream; that of a pack's last position is the first token of the pack after it.

Where the tokenizer puts a token for the beginning of a text (BOS) before what it encodes, every pack begins with it:
T tokens of the stream are what the pack must predict, and BOS and all of these but the last are what it reads. So BOS
is context and never scored, packs keep their length, and a pack scores T tokens with it and without.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from manticore.components.token_bytes import text_bytes
from manticore.errors import ManticoreError
from manticore.making import refuse_misfits
from manticore.option_types import Pair
from manticore.tasks.beginning import Bos, beginning
from manticore.tasks.corpus import read_corpus
from manticore.tasks.metrics import IGNORE, TextMetrics, TokenMetrics
from manticore.tasks.roundtrip import check_round_trip
from manticore.tasks.task import Task
from manticore.tasks.text_sources import STDLIB

LENGTH = 256
"""Tokens per example, where nothing else is asked for."""
HOLDOUT = 0.05
"""Share of the text that goes to validation, and as much again to test."""


def text(
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    source: str | Path | Sequence[str] | Dataset = STDLIB,
    text_column: str | None = None,
    length: int = LENGTH,
    max_bytes: int | None = None,
    data_seed: int = 0,
    bos: Bos = "auto",
) -> Task:
    """Predict the next token of a text.

    Args:
        tokenizer: that of the components.
        source: text files, tables, a folder, a datasets id, or stdlib: the sources of Python's standard library.
        text_column: of a table, the column that holds the documents; else text, or the only column of strings.
        length: tokens per example.
        max_bytes: read so much of the text only.
        data_seed: decides which documents are held out.
        bos: whether every example begins with the tokenizer's BOS token: auto (where it adds one), always or never.

    Raises:
        ManticoreError: no tokenizer, no BOS token where one is asked for, or text that cannot be read, is too short, or
            does not survive its tokenizer.
    """
    if tokenizer is None:
        raise ManticoreError("task 'text': needs the components' tokenizer. Fix: use components that carry one")
    splits = split_documents(read_corpus(source, text_column=text_column, max_bytes=max_bytes), data_seed=data_seed)
    return packed_task(splits, tokenizer, length, bos=bos)


def packed_task(
    splits: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase, length: int, *, bos: Bos = "auto"
) -> Task:
    """The task of predicting the documents of ``splits``, scored in nats per token and in bits per byte.

    Where the tokenizer's tokens cannot be read as bytes, bits per byte are left out.

    Raises:
        ManticoreError: as :func:`pack`.
    """
    packs = {name: pack(part, tokenizer, length, bos=bos, name=f"{name} part") for name, part in splits.items()}
    first, sizes = beginning(tokenizer, bos, stage="text"), text_bytes(tokenizer)
    return Task(
        name="text",
        vocab_size=None,
        length=length,
        data=DatasetDict(packs),
        primary_metric="loss",
        higher_is_better=False,
        metric_state=TokenMetrics if sizes is None else lambda: TextMetrics(sizes),
        chance=math.log(len(tokenizer)),
        bos="" if first is None else str(tokenizer.bos_token),
    )


def split_documents(documents: Sequence[str], *, data_seed: int = 0) -> dict[str, list[str]]:
    """The documents of ``train``, ``validation`` and ``test``.

    Where a document goes depends on its content alone, so a document held out from one corpus is held out from every
    larger one. Documents too few or too unequal for that are each cut in three, the beginning for training.
    """
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        digest = hashlib.sha256(f"{data_seed}/".encode() + document.encode("utf-8")).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        splits["test" if position < HOLDOUT else "validation" if position < 2 * HOLDOUT else "train"].append(document)
    total = sum(map(len, documents))
    shares = [sum(map(len, splits[name])) / total for name in ("validation", "test")]
    if all(HOLDOUT / 4 <= share <= HOLDOUT * 4 for share in shares):
        return splits
    cut: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        first, second = (_line_end(document, 1 - 2 * HOLDOUT), _line_end(document, 1 - HOLDOUT))
        for name, part in zip(cut, (document[:first], document[first:second], document[second:])):
            if part:
                cut[name].append(part)
    return cut


def _line_end(document: str, share: float) -> int:
    """The index after the last line end in the first ``share`` of the characters, if there is one not far before."""
    position = round(len(document) * share)
    line_end = document.rfind("\n", round(len(document) * (share - HOLDOUT / 2)), position) + 1
    return line_end or position


def pack(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: Pair,
    *,
    bos: Bos = "auto",
    name: str = "text",
) -> Dataset:
    """Packs of ``length`` tokens with the columns ``input_ids`` and ``targets``, each [packs, T].

    What does not fill the last pack is left out. Decoded, the stream is the source text; this is checked.

    Args:
        documents: strings.
        tokenizer: must have an end-of-text token.
        length: tokens per pack, BOS included.
        bos: whether every pack begins with the tokenizer's BOS token: ``"auto"`` where the tokenizer adds one.
        name: what errors call this text.

    Raises:
        ManticoreError: too short for one pack, no end-of-text or BOS token, or text that does not survive its
            tokenizer.
    """
    refuse_misfits("text", pack, {"length": length})
    if tokenizer.eos_token_id is None:
        raise ManticoreError("text: the tokenizer has no end-of-text token (eos_token). Fix: set tokenizer.eos_token")
    if not documents:
        raise ManticoreError(f"text: the {name} is empty. Fix: give more text")
    first = beginning(tokenizer, bos, stage="text")
    stream, starts = _tokenize(documents, tokenizer)
    packs = len(stream) // length
    if packs == 0:
        raise ManticoreError(
            f"text: the {name} is too short ({len(stream)} tokens, expected at least length={length}). "
            "Fix: give more text, or shorter packs"
        )
    rows = stream[: packs * length].reshape(packs, length)
    _check(documents, rows, starts, tokenizer)
    if first is None:
        inputs, following = rows, np.append(stream, IGNORE)[1 : packs * length + 1].reshape(packs, length)
    else:
        inputs, following = np.insert(rows[:, :-1], 0, first, axis=1), rows
    return Dataset.from_dict({"input_ids": inputs, "targets": following}).with_format("torch")


def _tokenize(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """The stream of tokens, and where in it each document starts; the end-of-text token follows each."""
    # verbose=False: these are not model inputs, their length needs no warning.
    encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False, verbose=False)
    parts = [np.array([*ids, tokenizer.eos_token_id], dtype=np.int64) for ids in encoded["input_ids"]]
    starts = np.cumsum([0, *map(len, parts)])
    return np.concatenate(parts), starts


def _check(documents: Sequence[str], rows: np.ndarray, starts: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> None:
    flat = rows.reshape(-1)
    packed = [flat[start : end - 1] for start, end in pairwise(starts) if start < flat.size]
    check_round_trip(
        documents[: len(packed)],
        [ids.tolist() for ids in packed],
        tokenizer,
        last_is_cut=bool(starts[len(packed)] - 1 > flat.size),
    )
