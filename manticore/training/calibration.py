"""Calibration text for alignment: packs of equal length, some to fit on and some held out.

Shapes: P packs, B batch, T tokens.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from manticore.errors import ManticoreError
from manticore.seeding import derive_seed
from manticore.tasks.beginning import Bos, beginning
from manticore.tasks.corpus import Text, read_corpus, refuse_no_text
from manticore.tasks.metrics import IGNORE
from manticore.tasks.text import pack, split_documents

logger = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 6
"""A first guess of how much text to read; doubled until it is enough."""


@dataclass(frozen=True)
class Packs:
    """Token sequences of one length."""

    input_ids: Tensor
    """``[P, T]``"""
    targets: Tensor
    """``[P, T]``: what each position must predict, -100 where nothing is asked."""
    attention_mask: Tensor | None
    """``[P, T]``, 0 on padding; None where there is none."""
    bos: str | None = None
    """The BOS token that every pack of text begins with, empty for none; None for a tokenised data set."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def select(self, rows: Tensor | slice) -> Packs:
        """Some of the packs."""
        mask = None if self.attention_mask is None else self.attention_mask[rows]
        return replace(self, input_ids=self.input_ids[rows], targets=self.targets[rows], attention_mask=mask)

    def to(self, device: torch.device) -> Packs:
        """The same packs on a device."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return replace(self, input_ids=self.input_ids.to(device), targets=self.targets.to(device), attention_mask=mask)

    def batches(self, batch_size: int, device: torch.device) -> Iterator[Packs]:
        """All packs in order, ``batch_size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.select(slice(start, start + batch_size)).to(device)


def calibration_packs(
    text: Text,
    *,
    tokens: int,
    holdout: float,
    length: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
    bos: Bos = "auto",
    text_column: str | None = None,
) -> tuple[Packs, Packs]:
    """Packs to fit on and packs held out, disjoint.

    Args:
        text: what :func:`manticore.tasks.corpus.read_corpus` reads, or a data set with the column ``input_ids`` (and
            perhaps ``targets``, ``attention_mask``) of equal lengths. Of text, the documents that the text task keeps
            for validation and test are left out.
        tokens: how many to take, the held-out ones included; fewer if the text has fewer.
        holdout: share of them that is held out, at least one pack.
        length: T; a tokenised data set has its own.
        seed: decides which documents or rows are taken.
        tokenizer: needed for text.
        bos: whether every pack begins with the tokenizer's BOS token: ``"auto"`` where the tokenizer adds one. A
            tokenised data set is taken as it is.
        text_column: the column that holds the documents, where there are columns.

    Raises:
        ManticoreError: no tokenizer, rows that differ in length, fewer than two packs, or a choice of ``bos`` for rows
            that are tokenised already.
    """
    refuse_no_text(text, "align")
    if isinstance(text, Dataset) and "input_ids" in text.column_names and text_column is None:
        if bos != "auto":
            raise ManticoreError(
                f"align: bos is {bos!r}, but the text is tokenised already. "
                "Fix: leave bos out, and let the rows begin with BOS; those of a task have its option bos"
            )
        packs = _rows(text, tokens, seed)
    else:
        packs = _packed(text, text_column, tokens, length, seed, tokenizer, bos)
    if len(packs) < 2:
        raise ManticoreError(
            f"align: {len(packs)} pack of {packs.input_ids.shape[1]} tokens (expected two or more: one to fit on, one "
            "held out). Fix: more tokens, more text, or a smaller length"
        )
    if len(packs) < tokens // packs.input_ids.shape[1]:
        logger.warning("align: the text has %d of the %d tokens asked for", packs.input_ids.numel(), tokens)
    held_out = min(max(1, round(len(packs) * holdout)), len(packs) - 1)
    return packs.select(slice(None, -held_out)), packs.select(slice(-held_out, None))


def _packed(
    text: Text,
    text_column: str | None,
    tokens: int,
    length: int,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
    bos: Bos,
) -> Packs:
    """Packs of shuffled documents, no more of them read than needed."""
    if tokenizer is None:
        raise ManticoreError(
            "align: text needs a tokenizer. Fix: pass tokenizer=, or a data set with the column input_ids"
        )
    documents = split_documents(read_corpus(text, text_column=text_column))["train"]
    random.Random(derive_seed(seed, "calibration")).shuffle(documents)
    wanted = max(2, tokens // length)
    characters = _CHARACTERS_PER_TOKEN * wanted * length
    while True:
        enough, taken = _first(documents, characters)
        packs = pack(taken, tokenizer, length, bos=bos, name="calibration text")
        if not enough or len(packs) >= wanted:
            first = beginning(tokenizer, bos, stage="align")
            taken_packs = _tensors(packs.select(range(min(wanted, len(packs)))))
            return replace(taken_packs, bos="" if first is None else str(tokenizer.bos_token))
        characters *= 2


def _first(documents: Sequence[str], characters: int) -> tuple[bool, list[str]]:
    """The beginning of the documents, and whether something is left over."""
    taken: list[str] = []
    for document in documents:
        if characters <= 0:
            return True, taken
        taken.append(document[:characters])
        characters -= len(document)
    return characters < 0, taken


def _rows(data: Dataset, tokens: int, seed: int) -> Packs:
    """Rows of a tokenised data set, drawn without replacement."""
    if len(data) == 0:
        raise ManticoreError("align: the data set is empty. Fix: give one with rows")
    length = len(data.with_format(None)[0]["input_ids"])
    if length < 2:
        raise ManticoreError(f"align: rows of {length} tokens (expected 2 or more). Fix: pack them to more")
    generator = torch.Generator().manual_seed(derive_seed(seed, "calibration"))
    order = torch.randperm(len(data), generator=generator)[: max(2, tokens // length)]
    return _tensors(data.select(order.tolist()))


def _tensors(data: Dataset) -> Packs:
    rows = data.with_format("numpy")[:]
    columns = {name: rows[name] for name in ("input_ids", "targets", "attention_mask") if name in rows}
    for name, values in columns.items():
        lengths = {len(row) for row in values} | {len(row) for row in columns["input_ids"]}
        if len(lengths) != 1:
            raise ManticoreError(
                f"align: rows of {name} have {min(lengths)} to {max(lengths)} tokens (expected one length). "
                "Fix: pack the text, or pad with an attention_mask"
            )
    as_tensors = {name: torch.from_numpy(np.stack(list(values))).long() for name, values in columns.items()}
    input_ids, mask = as_tensors["input_ids"], as_tensors.get("attention_mask")
    if mask is not None and bool(mask.all()):
        mask = None
    targets = as_tensors.get("targets")
    if targets is None:
        targets = torch.full_like(input_ids, IGNORE)
        targets[:, :-1] = input_ids[:, 1:]
        if mask is not None:
            targets[:, :-1][(mask[:, 1:] == 0) | (mask[:, :-1] == 0)] = IGNORE
    return Packs(input_ids, targets, mask)
