"""Stacks that compare two documents: one encoder reads both, a small head joins their last features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from manticore.components.last_token import pick
from manticore.components.pair_head import PairHead, pair_loss, stacked
from manticore.stacks.classification import StackClassifier
from manticore.stacks.configuration import StackConfig


class StackForPairClassification(StackClassifier):
    """A stack that classifies pairs of documents; see :class:`~manticore.ManticoreForPairClassification`."""

    documents = 2

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
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
        """Logits of every class, ``[B, C]``, with labels ``[B]`` also ``loss``; arguments as for hybrids."""
        ids, mask, end = stacked(input_ids, input_ids_2, attention_mask, attention_mask_2, self.config.pad_token_id)
        logits = self.score(pick(self._features(input_ids=ids, attention_mask=mask), end))
        output = SequenceClassifierOutput(loss=pair_loss(self, logits, labels), logits=logits)
        return output.to_tuple() if return_dict is False else output
