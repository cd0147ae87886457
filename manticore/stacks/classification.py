"""Stacks that classify sequences or tokens: a linear head on what leaves the last norm.

Shapes: B batch, T tokens, D width, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

from manticore.components.extra_arguments import loss_arguments
from manticore.components.labels import set_labels
from manticore.components.last_token import last_token, pick
from manticore.components.rebuilding import named_tensors, rebuilt
from manticore.errors import ManticoreError
from manticore.seeding import derive_seed
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackModel, StackPreTrainedModel

M = TypeVar("M", bound="StackClassifier")


class StackClassifier(StackPreTrainedModel):
    """What stacks with a head for classes share; see :class:`StackForSequenceClassification`."""

    # the loss is a mean over the batch
    accepts_loss_kwargs = False
    head_bias = False
    documents = 1
    """Sequences that an example consists of."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.model = StackModel(config)
        self.score = self._make_head(config.hidden_size, config.num_labels or 0)
        self.post_init()

    def _make_head(self, width: int, classes: int) -> nn.Module:
        return nn.Linear(width, classes, bias=self.head_bias)

    def _features(self, **inputs: Any) -> Tensor:
        """``[B, T, D]``."""
        self.check_adapters()
        body = cast(BaseModelOutputWithPast, self.model(**inputs, use_cache=False))
        return cast(Tensor, body.last_hidden_state)

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
        set_labels(config, num_labels, id2label, problem_type)
        made = rebuilt(
            lambda: cls(config), named_tensors(stack), device=stack.device, stage="from_causal_lm", fresh="score."
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "classification heads"))
            for part in made.score.to(stack.dtype).modules():
                made._init_weights(part)
        return made.train(stack.training)


class StackForSequenceClassification(StackClassifier):
    """A stack that classifies sequences by their last token. The head has no bias."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Logits of every class.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 0 on padding on either side; without it ``config.pad_token_id`` tells padding.
            position_ids: ``[B, T]``; only differences matter.
            labels: ``[B]`` class indices, ``[B, C]`` of 0 and 1 for several labels, or numbers for regression.
            use_cache: of no use: nothing is cached.
            return_dict: False returns a tuple.
            kwargs: packed documents as in :meth:`~manticore.stacks.modeling.StackModel.forward`; what tools add that
                changes nothing.

        Returns:
            ``logits`` ``[B, C]``, with labels ``loss``.

        Raises:
            ManticoreError: no ids, or several sequences of which nothing tells where they end.
        """
        loss_arguments(type(self).forward, kwargs)
        if input_ids is None:
            raise ManticoreError("stack: a classifier reads input_ids (got none). Fix: give them")
        end = last_token(input_ids, attention_mask, self.config.pad_token_id)
        features = self._features(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        logits = pick(self.score(features), end)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutputWithPast(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


class StackForTokenClassification(StackClassifier):
    """A stack that classifies every token. The head has a bias, and no dropout before it."""

    head_bias = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Logits of every class at every token; arguments as in :class:`StackForSequenceClassification`.

        Labels are ``[B, T]`` class indices; -100 is ignored.
        """
        loss_arguments(type(self).forward, kwargs)
        logits = self.score(
            self._features(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        )
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        output = TokenClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output
