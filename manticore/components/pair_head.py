"""The head that compares two documents which one encoder has read apart from each other.

    logits = W2 gelu(W1 [x1, x2, x1·x2, x1-x2] + b1) + b2

Features as in Tay et al. 2020, arXiv 2011.04006 (Retrieval); one hidden layer, as in later work on state-space models.
Shapes: B pairs, T tokens, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from manticore.components.classifier import Classifier
from manticore.components.extra_arguments import loss_arguments
from manticore.components.last_token import last_token, pick
from manticore.components.shapes import expect_shape
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
    expect_shape("input_ids_2", input_ids_2, input_ids.shape, "pad both documents to one length")
    if (attention_mask is None) != (attention_mask_2 is None):
        raise ManticoreError("forward: one document has a mask, the other none. Fix: give both or neither")
    ids = torch.cat([input_ids, input_ids_2])
    mask = None
    if attention_mask is not None and attention_mask_2 is not None:
        mask = torch.cat([attention_mask, attention_mask_2])
    return ids, mask, last_token(ids, mask, pad_token_id)


class ReadsPairs(Classifier):
    """What hybrids and stacks that compare two documents share; comes before it among the bases."""

    documents = 2

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # transformers takes it from the name of the class
        self.loss_type = "ForSequenceClassification"

    def _make_head(self, width: int, classes: int) -> nn.Module:
        return PairHead(width, classes)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids_2: Tensor | None = None,
        attention_mask_2: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Logits of every class, ``[B, C]``, with labels ``[B]`` also ``loss``.

        Args:
            input_ids: ``[B, T]``, the first documents.
            attention_mask: ``[B, T]``, 0 on padding.
            input_ids_2: ``[B, T]``, the second documents.
            attention_mask_2: ``[B, T]``, 0 on padding.
            labels: ``[B]`` class indices.
            use_cache: of no use: nothing is cached.
            return_dict: False returns a tuple.
            kwargs: what tools add that changes nothing.

        Raises:
            ManticoreError: a document is missing, shapes differ, unknown arguments, or more tokens than the model has
                positions for.
        """
        loss_arguments(type(self).forward, kwargs, packed=False)
        ids, mask, end = stacked(input_ids, input_ids_2, attention_mask, attention_mask_2, self.config.pad_token_id)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": None}
        logits = self._read(given, lambda head, features: head(pick(features, end)))
        output = SequenceClassifierOutput(loss=self._pooled_loss(logits, labels), logits=logits)  # type: ignore[arg-type]
        return output.to_tuple() if return_dict is False else output
