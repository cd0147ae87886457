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
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from manticore.components.token_bytes import text_bytes
from manticore.errors import ManticoreError
from manticore.making import refuse_misfits
from manticore.option_types import Count, Pair, Sources
from manticore.tasks.beginning import Bos, beginning
from manticore.tasks.corpus import read_corpus
from manticore.tasks.metrics import SourceMetrics, TextMetrics, TokenMetrics
from manticore.tasks.mixture import mixed_packs, read_sources
from manticore.tasks.stream import cut, token_stream
from manticore.tasks.task import Task
from manticore.tasks.text_sources import LENGTH, STDLIB, beside_sources

HOLDOUT = 0.05
"""Share of the text that goes to validation, and as much again to test."""
SPLITS = ("train", "validation", "test")


def text(
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    source: str | Path | Sequence[str] | Dataset = STDLIB,
    text_column: str | None = None,
    sources: Sources | None = None,
    change_every: Count | None = None,
    length: int = LENGTH,
    max_bytes: int | None = None,
    data_seed: int = 0,
    bos: Bos = "auto",
) -> Task:
    """Predict the next token of a text.

    Args:
        tokenizer: that of the components.
        source: text files, tables, a folder, a datasets id, stdlib (the sources of Python's standard library) or
            docstrings (English out of packages that come along).
        text_column: of a table, the column that holds the documents; else text, or the only column of strings.
        sources: several texts instead of one: name, then text (as source), share of the tokens, and perhaps
            text_column; loss and bits per byte are also those of each.
        change_every: with sources, tokens after which the text changes its source, on average; left out, every example
            is of one source.
        length: tokens per example.
        max_bytes: read so much of the text only; of each of several.
        data_seed: decides which documents are held out.
        bos: whether every example begins with the tokenizer's BOS token: auto (where it adds one), always or never.

    Raises:
        ManticoreError: no tokenizer, no BOS token where one is asked for, text that cannot be read, is too short, or
            does not survive its tokenizer, or a source beside several.
    """
    given = {"source": None if isinstance(source, str) and source == STDLIB else source, "text_column": text_column}
    wrong = beside_sources({**given, "sources": sources, "change_every": change_every})
    if wrong is not None:
        raise ManticoreError(f"task 'text': {': '.join(wrong)}")
    if tokenizer is None:
        raise ManticoreError("task 'text': needs the components' tokenizer. Fix: use components that carry one")
    if sources is not None:
        read = read_sources(sources, max_bytes=max_bytes)
        parts = {name: split_documents(documents, data_seed=data_seed) for name, documents in read.items()}
        shares = [float(each["share"]) for each in sources.values()]
        mixed = {
            split: mixed_packs(
                {name: parts[name][split] for name in parts},
                shares,
                tokenizer,
                length,
                bos=bos,
                change_every=change_every,
                seed=data_seed,
                part=split,
            )
            for split in SPLITS
        }
        return task_of_packs(mixed, tokenizer, length, bos, sources=tuple(sources))
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
    return task_of_packs(packs, tokenizer, length, bos)


def task_of_packs(
    packs: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    bos: Bos = "auto",
    sources: tuple[str, ...] = (),
) -> Task:
    """The task of predicting packs that have been cut already, split by split; of a mixture with its sources' names."""
    first, sizes = beginning(tokenizer, bos, stage="text"), text_bytes(tokenizer)
    make = TokenMetrics if sizes is None else partial(TextMetrics, sizes)
    return Task(
        name="text",
        vocab_size=None,
        length=length,
        data=DatasetDict(packs),
        primary_metric="loss",
        higher_is_better=False,
        metric_state=partial(SourceMetrics, sources, make) if sources else make,
        chance=math.log(len(tokenizer)),
        bos="" if first is None else str(tokenizer.bos_token),
        sources=sources,
    )


def split_documents(documents: Sequence[str], *, data_seed: int = 0) -> dict[str, list[str]]:
    """The documents of ``train``, ``validation`` and ``test``.

    Where a document goes depends on its content alone, so a document held out from one corpus is held out from every
    larger one. Documents too few or too unequal for that are each cut in three, the beginning for training.
    """
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for document in documents:
        digest = hashlib.sha256(f"{data_seed}/".encode() + document.encode("utf-8")).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        splits["test" if position < HOLDOUT else "validation" if position < 2 * HOLDOUT else "train"].append(document)
    total = sum(map(len, documents))
    shares = [sum(map(len, splits[name])) / total for name in ("validation", "test")]
    if all(HOLDOUT / 4 <= share <= HOLDOUT * 4 for share in shares):
        return splits
    thirds: dict[str, list[str]] = {split: [] for split in SPLITS}
    for document in documents:
        first, second = (_line_end(document, 1 - 2 * HOLDOUT), _line_end(document, 1 - HOLDOUT))
        for name, part in zip(thirds, (document[:first], document[first:second], document[second:])):
            if part:
                thirds[name].append(part)
    return thirds


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
    stream = token_stream(documents, tokenizer, length, name=name)
    return Dataset.from_dict(cut(stream, length, beginning(tokenizer, bos, stage="text"))).with_format("torch")
