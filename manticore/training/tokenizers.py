"""Trains a byte-level BPE tokenizer: no text is unknown to it, and decoding gives back every byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from manticore.errors import ManticoreError
from manticore.making import checked
from manticore.option_types import Wanted

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
_SMALLEST = len(pre_tokenizers.ByteLevel.alphabet()) + 2
Tokens = Annotated[
    int, Field(ge=_SMALLEST), Wanted("a whole number, 256 bytes and two special tokens", f"give {_SMALLEST} or more")
]


@checked("tokenizer")
def train_tokenizer(documents: Sequence[str], vocab_size: Tokens) -> PreTrainedTokenizerFast:
    """A tokenizer for ``documents`` with tokens for the end of a document (id 0) and for padding (id 1).

    The same documents give the same tokenizer. It may have fewer tokens than asked for when the text is short.

    Args:
        documents: what the merges are counted on.
        vocab_size: tokens: all 256 bytes, the two special ones, and merges.

    Raises:
        ManticoreError: a vocabulary too small for the bytes, or no text.
    """
    if not any(documents):
        raise ManticoreError("tokenizer: no text to train on. Fix: give documents that hold text")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        # Without the alphabet, bytes that these documents lack would have no token.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )
