"""The head that compares two documents which one encoder has read apart from each other.

    logits = W2 gelu(W1 [x1, x2, x1·x2, x1-x2] + b1) + b2

Features as in Tay et al. 2020, arXiv 2011.04006 (Retrieval); one hidden layer, as in later work on state-space models.
Letters: B pairs, T tokens, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manticore.components.last_token import last_token
from manticore.errors import ManticoreError


class PairHead(nn.Module):
    """Reads the last features of both documents.

    Args:
        width: D.
        classes: C.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """``[2B, D]``, the first documents and then the second → ``[B, C]``."""
        first, second = features.chunk(2)
        joined = torch.cat([first, second, first * second, first - second], -1)
        return self.out(F.gelu(self.hidden(joined)))


def stacked(
    input_ids: Tensor | None,
    input_ids_2: Tensor | None,
    attention_mask: Tensor | None,
    attention_mask_2: Tensor | None,
    pad_token_id: int | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids ``[2B, T]`` and mask of both documents along the batch, and the last token ``[2B]`` of each.

    Raises:
        ManticoreError: a document is missing, shapes differ, one mask without the other, or nothing tells where the
            documents end.
    """
    if input_ids is None or input_ids_2 is None:
        raise ManticoreError("forward: pairs have two documents. Fix: give input_ids and input_ids_2")
    if input_ids.shape != input_ids_2.shape:
        raise ManticoreError(
            f"forward: documents of shapes {list(input_ids.shape)} and {list(input_ids_2.shape)} (expected one shape). "
            "Fix: pad both to one length"
        )
    if (attention_mask is None) != (attention_mask_2 is None):
        raise ManticoreError("forward: one document has a mask, the other none. Fix: give both or neither")
    ids = torch.cat([input_ids, input_ids_2])
    mask = None
    if attention_mask is not None and attention_mask_2 is not None:
        mask = torch.cat([attention_mask, attention_mask_2])
    return ids, mask, last_token(ids, mask, pad_token_id)


def pair_loss(model: Any, logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """The loss of transformers' sequence classification, where there are labels."""
    return None if labels is None else model.loss_function(labels=labels, pooled_logits=logits, config=model.config)
