"""Hybrids that compare two documents: one encoder reads both, a small head per component joins their last features."""

from __future__ import annotations

from torch import Tensor

from manticore.components.last_token import pick
from manticore.components.pair_head import ReadsPairs
from manticore.hybrid.classification import ManticoreClassifier
from manticore.hybrid.inputs import Part, check_inputs


class ManticoreForPairClassification(ReadsPairs, ManticoreClassifier):
    """A hybrid that classifies pairs of documents, for Retrieval of the Long Range Arena.

    The documents do not see each other. Saved and loaded by its own class: no ``Auto`` class leads to it.
    """

    def _pair_logits(self, ids: Tensor, mask: Tensor | None, end: Tensor) -> Tensor:
        check_inputs(ids, mask, None, cached=0, vocab_size=self.config.vocab_size)
        return self._mixed(Part(ids, mask, None), lambda head, features: head(pick(features, end)))
