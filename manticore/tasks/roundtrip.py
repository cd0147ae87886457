"""Guards that tokens say what the text said: what is decoded from them must be the source.

A wrong tokenizer, or text passed as characters, otherwise trains a model on ``t h i s`` without a word.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from manticore.errors import ManticoreError

logger = logging.getLogger(__name__)


def check_round_trip(
    documents: Sequence[str],
    tokens: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    last_is_cut: bool = False,
) -> None:
    """Compare every document with its decoded tokens.

    Tokenizers that change white space, case or the composition of characters are accepted with a warning.

    Args:
        documents: the source.
        tokens: token ids of each document, as packed.
        tokenizer: what made them.
        last_is_cut: the tokens of the last document hold its beginning only.

    Raises:
        ManticoreError: the tokens say something else; the message shows where.
    """
    decoded = tokenizer.batch_decode(
        [list(ids) for ids in tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    cut = len(documents) - 1 if last_is_cut else None
    changed = 0
    for index, (document, text, ids) in enumerate(zip(documents, decoded, tokens)):
        # A cut may go through the bytes of one character, which then decode to replacement characters.
        if text == document or (index == cut and document.startswith(text.rstrip("\ufffd"))):
            continue
        _refuse_spaced_out(index, document, text, len(ids))
        source, result = _plain(document), _plain(text)
        if result != source and not (index == cut and source.startswith(result.rstrip("\ufffd"))):
            _refuse(index, source, result, ids, tokenizer)
        changed += 1
    if changed:
        logger.warning(
            "the tokenizer changes white space, case or accents in %d of %d documents; models see the changed text",
            changed,
            len(documents),
        )


def _plain(text: str) -> str:
    """The text without what lossy but honest tokenizers change."""
    return "".join(unicodedata.normalize("NFKC", text).split()).casefold()


def _refuse_spaced_out(index: int, document: str, text: str, num_tokens: int) -> None:
    characters = len("".join(document.split()))
    added = text.count(" ") - document.count(" ")
    if characters > 1 and num_tokens >= 0.8 * characters and added >= 0.5 * characters:
        raise ManticoreError(
            f"text: document {index} comes out with its characters spaced apart ({text[:20]!r}, {num_tokens} tokens "
            f"for {characters} characters). Fix: use the checkpoint's own tokenizer; this one does not know these words"
        )


def _refuse(index: int, source: str, result: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    unknown = sum(token == tokenizer.unk_token_id for token in ids) if tokenizer.unk_token_id is not None else 0
    if unknown:
        raise ManticoreError(
            f"text: {unknown} of the {len(ids)} tokens of document {index} are unknown to the tokenizer. "
            "Fix: use a byte-level tokenizer, or the one that belongs to the checkpoint"
        )
    at = next((i for i, (a, b) in enumerate(zip(source, result)) if a != b), min(len(source), len(result)))
    raise ManticoreError(
        f"text: document {index} cannot be decoded from its tokens (white space apart, at character {at} got "
        f"{result[at : at + 20]!r}, expected {source[at : at + 20]!r}). Fix: use the tokenizer of the checkpoint"
    )
