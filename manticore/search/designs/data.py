"""What designs are trained on, made once per process: text as tokens or bytes, and the settings of MAD."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from manticore.components.loading import load_tokenizer
from manticore.components.token_bytes import TokenBytes
from manticore.design_settings import BYTES, TextRead
from manticore.errors import ManticoreError
from manticore.tasks.corpus import read_corpus
from manticore.tasks.mad.examples import KINDS, generate_validation
from manticore.tasks.mad.grid import Setting
from manticore.tasks.mad.protocol import Protocol, choose_protocol, tier_settings
from manticore.tasks.mad.streams import Arrays
from manticore.tasks.stream import cut
from manticore.tasks.task import Task
from manticore.tasks.text import split_documents, task_of_packs, text
from manticore.training.tokenizers import END_OF_TEXT, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL = 2
"""Tokens of a new tokenizer that are no text."""
BYTE_VOCABULARY = 256 + _SPECIAL
"""Tokens of :func:`byte_tokenizer`: one for every byte, for the end of a text and for padding."""


def text_task(settings: TextRead) -> tuple[Task, PreTrainedTokenizerBase]:
    """The text that designs are trained on as a task with a vocabulary of its own, and its tokenizer.

    Raises:
        ManticoreError: text that cannot be read or is too short, or no such tokenizer.
    """
    if settings.text is None:
        raise ManticoreError("design: text is null, so there is none to train on. Fix: text='stdlib'")
    wanted = (settings.text_column, settings.max_bytes, settings.tokenizer, settings.length, settings.data_seed)
    if not isinstance(settings.text, str):
        # documents in memory are no key
        return _text_task(settings.text, *wanted)
    return _named_text_task(settings.text, *wanted)


def _text_task(
    source: Any, column: str | None, max_bytes: int | None, tokenizer: str, length: int, data_seed: int
) -> tuple[Task, PreTrainedTokenizerBase]:
    known = tokenizer_of(tokenizer)
    if tokenizer == BYTES:
        documents = read_corpus(source, text_column=column, max_bytes=max_bytes)
        packs = {
            name: Dataset.from_dict(cut(byte_stream(part, known, length, name), length, None))
            for name, part in split_documents(documents, data_seed=data_seed).items()
        }
        task = task_of_packs(packs, known, length)
    else:
        task = text(known, source=source, text_column=column, max_bytes=max_bytes, length=length, data_seed=data_seed)
    held_out = task.data["validation"].with_format("numpy")[:]
    # so that the first examples are a sample of all documents
    order = np.random.default_rng(data_seed).permutation(len(held_out["input_ids"]))
    task.data["validation"] = Dataset.from_dict({column: rows[order] for column, rows in held_out.items()})
    # a design has the embeddings of this vocabulary from the start
    return replace(task, vocab_size=len(known)), known


_named_text_task = lru_cache(maxsize=4)(_text_task)


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that the option ``tokenizer`` names.

    Raises:
        ManticoreError: there is none.
    """
    found = byte_tokenizer() if name == BYTES else load_tokenizer(name)
    if found is None:
        raise ManticoreError(f"design: no tokenizer in {name}. Fix: give its folder, or tokenizer='bytes'")
    return found


@lru_cache(maxsize=1)
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer without a merge: a token for every byte, for the end of a text and for padding."""
    return train_tokenizer([END_OF_TEXT], BYTE_VOCABULARY)


def byte_stream(documents: list[str], tokenizer: PreTrainedTokenizerBase, length: int, name: str) -> np.ndarray:
    """The tokens of documents, an end-of-text token behind each, by looking each byte up: int64 [tokens].

    Args:
        documents: strings.
        tokenizer: :func:`byte_tokenizer`.
        length: tokens of a pack.
        name: of the part, for errors.

    Raises:
        ManticoreError: too short for one pack.
    """
    of = TokenBytes(tokenizer).by_bytes
    table = np.array([of[bytes([byte])] for byte in range(256)], dtype=np.int64)
    end = np.array([tokenizer.eos_token_id], dtype=np.int64)
    parts = [part for text in documents for part in (table[np.frombuffer(text.encode(), np.uint8)], end)]
    stream = np.concatenate(parts) if parts else end[:0]
    if len(stream) < length:
        raise ManticoreError(
            f"design: the {name} part of the text is too short ({len(stream)} bytes, expected at least "
            f"length={length}). Fix: give more text, or shorter sequences"
        )
    return stream


@lru_cache(maxsize=1)
def mad_data(
    tier: str, tasks: tuple[str, ...], epochs: int | None
) -> tuple[Protocol, dict[Setting, dict[str, Arrays]]]:
    """The settings of MAD tasks with their data, and how models are trained on them.

    Epochs and the best of several runs are chosen on a validation split of its own, so that what designs are compared
    by was chosen on other data.
    """
    protocol = choose_protocol("published", tier=tier, selection="validation")
    if epochs is not None:
        protocol = replace(protocol, epochs=epochs)
    data = {}
    for setting in tier_settings(tier, list(tasks)):
        data[setting] = {**setting.generate(), "validation": generate_validation(setting.task, **setting.options)}
    return protocol, data


def is_autoencoding(setting: Setting) -> bool:
    """Whether a setting is made for auto-encoders."""
    return KINDS[setting.task].backbone == "autoencoder"
