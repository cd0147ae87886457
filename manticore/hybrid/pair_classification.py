"""Hybrids that compare two documents: one encoder reads both, a small head per component joins their last features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from manticore.components.last_token import pick
from manticore.components.pair_head import PairHead, pair_loss, stacked
from manticore.hybrid.classification import ManticoreClassifier
from manticore.hybrid.configuration import ManticoreConfig


class ManticoreForPairClassification(ManticoreClassifier):
    """A hybrid that classifies pairs of documents, for Retrieval of the Long Range Arena.

    The documents do not see each other. Saved and loaded by its own class: no ``Auto`` class leads to it.
    """

    documents = 2

    def __init__(self, config: ManticoreConfig, components: Any = None) -> None:
        super().__init__(config, components)
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
            kwargs: what trainers add; not read.

        Raises:
            ManticoreError: a document is missing, shapes differ, or more tokens than a component has positions for.
        """
        ids, mask, end = stacked(input_ids, input_ids_2, attention_mask, attention_mask_2, self.config.pad_token_id)
        logits = self._mixed(ids, mask, None, lambda head, features: head(pick(features, end)))
        output = SequenceClassifierOutput(loss=pair_loss(self, logits, labels), logits=logits)
        return output.to_tuple() if return_dict is False else output
