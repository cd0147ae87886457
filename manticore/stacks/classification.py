"""Stacks that classify sequences, tokens or pairs: a head on what leaves the last norm.

Shapes: B batch, T tokens, D width, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from manticore.components.classifier import Classifier, OfSequences, OfTokens
from manticore.components.pair_head import ReadsPairs
from manticore.components.rebuilding import named_tensors
from manticore.errors import ManticoreError
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackModel, StackPreTrainedModel

M = TypeVar("M", bound="StackClassifier")


class StackClassifier(Classifier, StackPreTrainedModel):
    """What stacks with a head for classes share; see :class:`StackForSequenceClassification`."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.model = StackModel(config)
        self.score = self._make_head(config.hidden_size, config.num_labels or 0)
        self.post_init()

    def _heads(self) -> list[nn.Module]:
        return [self.score.to(self.dtype)]

    def _read(self, given: Mapping[str, Any], read: Callable[[Any, Tensor], Tensor]) -> Tensor:
        self.check_adapters()
        body = cast(BaseModelOutputWithPast, self.model(**given, use_cache=False))
        return read(self.score, cast(Tensor, body.last_hidden_state))

    @classmethod
    def from_causal_lm(
        cls: type[M],
        stack: StackPreTrainedModel,
        *,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        problem_type: str | None = None,
        seed: int = 0,
    ) -> M:
        """A classifier with copies of a stack's body and a fresh head.

        Args:
            stack: a :class:`~manticore.StackForCausalLM`; it is left as it is.
            num_labels: C; None takes ``id2label``'s, or the configuration's.
            id2label: names of the classes.
            problem_type: ``"single_label_classification"``, ``"multi_label_classification"`` or ``"regression"``;
                None lets the first labels decide, as in transformers.
            seed: of the head.

        Raises:
            ManticoreError: no stack, no class at all, or two counts of classes.
        """
        if not isinstance(stack, StackPreTrainedModel):
            raise ManticoreError(
                f"from_causal_lm: a {type(stack).__name__} is not a stack. "
                "Fix: ManticoreForSequenceClassification.from_causal_lm, which takes any causal language model"
            )
        config: Any = copy.deepcopy(stack.config)
        # the classifier has no second table that the embeddings could be shared with
        config.tie_word_embeddings = False
        labels = {"num_labels": num_labels, "id2label": id2label, "problem_type": problem_type}
        made: M = cls._with_heads(config, stack, named_tensors(stack), seed, **labels)
        return made


class StackForSequenceClassification(OfSequences, StackClassifier):
    """A stack that classifies sequences by their last token. The head has no bias."""


class StackForTokenClassification(OfTokens, StackClassifier):
    """A stack that classifies every token. The head has a bias, and no dropout before it."""


class StackForPairClassification(ReadsPairs, StackClassifier):
    """A stack that classifies pairs of documents; see :class:`~manticore.ManticoreForPairClassification`."""
