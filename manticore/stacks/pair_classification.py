"""Stacks that compare two documents: one encoder reads both, a small head joins their last features."""

from __future__ import annotations

from torch import Tensor

from manticore.components.last_token import pick
from manticore.components.pair_head import ReadsPairs
from manticore.stacks.classification import StackClassifier


class StackForPairClassification(ReadsPairs, StackClassifier):
    """A stack that classifies pairs of documents; see :class:`~manticore.ManticoreForPairClassification`."""

    def _pair_logits(self, ids: Tensor, mask: Tensor | None, end: Tensor) -> Tensor:
        return self.score(pick(self._features(input_ids=ids, attention_mask=mask), end))
