"""What a pack of text begins with: the token for the beginning of a text (BOS) where the tokenizer adds one.

Models that were trained with it use it as a place to look at when there is nothing to look at; without it some score
far worse than they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from manticore.errors import ManticoreError
from manticore.option_types import Bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its BOS token before a text that it encodes; flags alone do not decide."""
    bos = tokenizer.bos_token_id
    # a tokenizer may have the letter itself as its BOS token
    plain = tokenizer("a", add_special_tokens=False).input_ids
    return bos is not None and tokenizer("a").input_ids[:1] == [bos] != plain[:1]


def beginning(tokenizer: PreTrainedTokenizerBase, bos: Bos, *, stage: str) -> int | None:
    """The id of the token that every pack begins with; None for none.

    Raises:
        ManticoreError: ``bos`` is none of the three, or ``"always"`` where the tokenizer has no BOS token.
    """
    if bos not in get_args(Bos):
        raise ManticoreError(f"{stage}: bos is {bos!r} (expected auto, always or never). Fix: choose one")
    if bos == "never" or (bos == "auto" and not adds_bos(tokenizer)):
        return None
    if tokenizer.bos_token_id is None:
        raise ManticoreError(
            f"{stage}: bos is 'always', but the tokenizer has no BOS token. Fix: bos='auto', or set tokenizer.bos_token"
        )
    return int(tokenizer.bos_token_id)
