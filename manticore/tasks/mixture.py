"""Text of several sources, each with a share of the tokens: packs of one source each, or packs that change it inside.

In every split each source has its share to within one pack, or one stretch; as much of each is used as the scarcest
allows, and nothing twice. Any number of first examples has about the shares that all of them have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from manticore.errors import ManticoreError, about
from manticore.seeding import derive_seed
from manticore.tasks.beginning import Bos, beginning
from manticore.tasks.corpus import read_corpus
from manticore.tasks.metrics import IGNORE, SOURCES
from manticore.tasks.stream import cut, token_stream

logger = logging.getLogger(__name__)

_JITTER = 0.25
"""Stretches are between half and one and a half times as long as on average."""


def read_sources(sources: Mapping[str, Mapping[str, Any]], *, max_bytes: int | None) -> dict[str, list[str]]:
    """Source → its documents; a document that several have counts for the first of them.

    Args:
        sources: name → ``text``, ``share``, perhaps ``text_column``.
        max_bytes: read so much of each only.

    Raises:
        ManticoreError: a source cannot be read, is empty, or has nothing of its own.
    """
    read: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for name, source in sources.items():
        with about(f"source {name!r}"):
            documents = read_corpus(source["text"], text_column=source.get("text_column"), max_bytes=max_bytes)
        read[name] = [document for document in documents if owner.setdefault(document, name) == name]
        shared = len(documents) - len(read[name])
        if not read[name]:
            others = " and ".join(sorted({repr(owner[document]) for document in documents}))
            raise ManticoreError(
                f"source {name!r}: all of its {shared} documents are in {others} too. Fix: give another text"
            )
        if shared:
            logger.warning(
                "source %r: %d of its %d documents are in an earlier source too, and count there",
                name,
                shared,
                len(documents),
            )
    return read


def mixed_packs(
    documents: Mapping[str, Sequence[str]],
    shares: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    bos: Bos,
    change_every: int | None,
    seed: int,
    part: str,
) -> Dataset:
    """One split: packs with the columns ``input_ids``, ``targets`` and ``sources``, each [packs, T].

    Args:
        documents: source → its documents of this split.
        shares: of the tokens, in the order of the sources.
        tokenizer: must have an end-of-text token.
        length: tokens per pack, BOS included.
        bos: as :func:`manticore.tasks.text.pack`.
        change_every: tokens after which a text changes its source, on average; None: packs are of one source.
        seed: of which packs are taken, and of the lengths of stretches.
        part: what errors call this split.

    Raises:
        ManticoreError: as :func:`manticore.tasks.text.pack`; or too little text for a source's share.
    """
    streams = {}
    for name, each in documents.items():
        streams[name] = token_stream(each, tokenizer, length, name=f"{part} part of source {name!r}")
    first, random = beginning(tokenizer, bos, stage="text"), np.random.default_rng(derive_seed(seed, f"mix {part}"))
    if change_every is None:
        columns = _apart(streams, shares, length, first, random)
    else:
        columns = _changing(streams, shares, length, first, random, change_every)
    present = np.bincount(columns[SOURCES][columns["targets"] != IGNORE], minlength=len(streams))
    for name, tokens, share in zip(streams, present, shares):
        if tokens == 0:
            raise ManticoreError(
                f"text: the {part} part has {len(columns['targets'])} packs, and a share of {share:g} gives source "
                f"{name!r} none of them. Fix: a larger share, more text of the other sources, or shorter packs"
            )
    return Dataset.from_dict(columns).with_format("torch")


def _apart(
    streams: Mapping[str, np.ndarray],
    shares: Sequence[float],
    length: int,
    first: int | None,
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Packs of one source each."""
    packs = [cut(stream, length, first) for stream in streams.values()]
    there = [len(each["targets"]) for each in packs]
    counts = allotted(there, shares)
    # not the first ones: documents have an order, such as that of the alphabet
    taken = [random.permutation(have)[:count] for have, count in zip(there, counts)]
    order = in_turn(counts)
    columns = {name: np.empty((len(order), length), dtype=np.int64) for name in ("input_ids", "targets")}
    for index, (each, rows) in enumerate(zip(packs, taken)):
        for name, column in columns.items():
            column[order == index] = each[name][rows]
    return {**columns, SOURCES: np.repeat(order[:, None], length, axis=1)}


def _changing(
    streams: Mapping[str, np.ndarray],
    shares: Sequence[float],
    length: int,
    first: int | None,
    random: np.random.Generator,
    change_every: int,
) -> dict[str, np.ndarray]:
    """Packs out of one stream that goes from source to source, each of which it reads on where it left it."""
    # in every round each source has one stretch, up to a place drawn about the one where its share is met
    rounds = [change_every * len(streams) * share for share in shares]
    count = max(0, int(min(len(stream) / mean for stream, mean in zip(streams.values(), rounds)) - _JITTER))
    read = [
        np.rint(mean * (np.arange(1, count + 1) + random.uniform(-_JITTER, _JITTER, count))).astype(np.int64)
        for mean in rounds
    ]
    stretches = [np.split(stream[: ends[-1]], ends[:-1]) for stream, ends in zip(streams.values(), read) if count]
    # round after round, not source after source
    turns = [(index, piece) for turn in zip(*stretches) for index, piece in enumerate(turn)]
    stream = np.concatenate([np.empty(0, dtype=np.int64), *(piece for _, piece in turns)])
    marks = np.repeat([index for index, _ in turns], [len(piece) for _, piece in turns])
    if len(stream) < length:
        raise ManticoreError(
            f"text: too little text for packs of {length} tokens that change their source every {change_every}. "
            "Fix: more text, or a smaller length or change_every"
        )
    source_of_target = cut(marks, length, first)["targets"]
    # the last target of all may be none
    return {**cut(stream, length, first), SOURCES: np.maximum(source_of_target, 0)}


def allotted(there: Sequence[int], shares: Sequence[float]) -> list[int]:
    """How many packs of each source give it its share to within one, as many as there are."""
    total = int(min(have / share for have, share in zip(there, shares)) + 1e-9)
    wanted = [total * share for share in shares]
    counts = [int(each + 1e-9) for each in wanted]
    # what is left goes to those that rounding down has cost most
    for index in sorted(range(len(counts)), key=lambda k: counts[k] - wanted[k]):
        if sum(counts) < total and counts[index] < there[index]:
            counts[index] += 1
    return counts


def in_turn(counts: Sequence[int]) -> np.ndarray:
    """``counts[k]`` times each index k, in an order in which every beginning has about the shares of the whole."""
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]
