"""Where a sequence ends in a padded batch, and which positions its tokens have.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manticore.components.shapes import expect_shape
from manticore.errors import ManticoreError


def last_token(input_ids: Tensor, attention_mask: Tensor | None, pad_token_id: int | None) -> Tensor:
    """Index ``[B]`` of each sequence's last token that is no padding, whichever side was padded.

    Args:
        input_ids: ``[B, T]``.
        attention_mask: ``[B, T]``, 0 on padding; it decides where it is given.
        pad_token_id: decides where there is no mask, as in transformers' own classes.

    Raises:
        ManticoreError: several sequences, and neither a mask nor a padding token says where they end.
    """
    if attention_mask is not None:
        expect_shape("attention_mask", attention_mask, input_ids.shape, "give a mask of padding, as input_ids has")
        present = attention_mask != 0
    elif pad_token_id is not None:
        present = input_ids != pad_token_id
    elif len(input_ids) == 1:
        present = torch.ones_like(input_ids, dtype=torch.bool)
    else:
        raise ManticoreError(
            f"forward: {len(input_ids)} sequences, and neither attention_mask nor config.pad_token_id tells where "
            "they end. Fix: give attention_mask, all ones where nothing is padded"
        )
    places = torch.arange(input_ids.shape[1], device=input_ids.device, dtype=torch.int32)
    return (places * present).argmax(-1)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """``[B, T, …]`` at index ``[B]`` → ``[B, …]``."""
    return values[torch.arange(len(values), device=values.device), index]


def positions_of(attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor | None:
    """``position_ids``, or ``[B, T]`` counted from each sequence's first token where a mask of padding is given."""
    if position_ids is not None or attention_mask is None or attention_mask.dim() != 2:
        return position_ids
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
