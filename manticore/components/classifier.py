"""What classifiers made of hybrids and of stacks share: the call, the loss, and fresh heads on a causal model's body.

Shapes: B batch, T tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutputWithPast, TokenClassifierOutput

from manticore.components.extra_arguments import loss_arguments
from manticore.components.labels import set_labels
from manticore.components.last_token import last_token, pick
from manticore.components.rebuilding import rebuilt
from manticore.errors import ManticoreError
from manticore.seeding import derive_seed

Together = Callable[[list[Tensor]], Tensor]


class Classifier:
    """A body with heads for classes under the name ``score``; comes before its kind of model among the bases."""

    # the loss is a mean over the batch
    accepts_loss_kwargs = False
    head_bias = False
    documents = 1
    """Sequences that an example consists of."""
    config: Any
    loss_function: Any
    score: nn.Module

    def _make_head(self, width: int, classes: int) -> nn.Module:
        return nn.Linear(width, classes, bias=self.head_bias)

    def _heads(self) -> Iterable[nn.Module]:
        """Every head, in the precision of the body that it reads."""
        raise NotImplementedError

    def _passes(self, given: dict[str, Any], extra: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Together]:
        """What has to be read in passes of its own, and what puts the logits of all passes together, ``[B, T, C]``.

        Args:
            given: ids, mask and positions.
            extra: tells packed documents apart.
        """
        return [{**given, **extra}], lambda logits: logits[0]

    def _read(self, given: Mapping[str, Any], read: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """What ``read(head, features [n, L, D])`` returns, of one pass."""
        raise NotImplementedError

    @classmethod
    def _with_heads(
        cls, config: Any, model: PreTrainedModel, given: Mapping[str, Tensor], seed: int, **labels: Any
    ) -> Any:
        """Copies of the ``given`` tensors of ``model`` and fresh heads; labels as :func:`set_labels` takes them."""
        set_labels(config, **labels)
        make: Callable[[], Any] = partial(cls, config)  # type: ignore[call-arg]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "classification heads"))
            made = rebuilt(make, given, device=model.device, stage="from_causal_lm", fresh="score.")
            for head in made._heads():
                for part in head.modules():
                    made._init_weights(part)
        return made.train(model.training)

    def _pooled_loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        """Of logits ``[B, C]``."""
        if labels is None:
            return None
        loss: Tensor = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return loss


class OneDocument(Classifier):
    """What reads one sequence per example."""

    def _answer(
        self, by_token: Tensor, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None
    ) -> ModelOutput:
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Any, ...]:
        """Logits of every class.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 0 on padding on either side; for classes of sequences ``config.pad_token_id``
                tells padding without it.
            position_ids: ``[B, T]``; None counts from the mask where there is one.
            labels: of sequences ``[B]`` class indices, ``[B, C]`` of 0 and 1 for several labels, or numbers for
                regression; of tokens ``[B, T]`` class indices, -100 is ignored.
            inputs_embeds: refused.
            use_cache: of no use: nothing is cached.
            return_dict: False returns a tuple.
            kwargs: packed documents as in :meth:`~manticore.ManticoreForCausalLM.forward`; what tools add that changes
                nothing.

        Returns:
            ``logits``, of sequences ``[B, C]``, of tokens ``[B, T, C]``; with labels ``loss``.

        Raises:
            ManticoreError: no ids, several sequences of which nothing tells where they end, or more tokens than a
                component has positions for.
        """
        loss_arguments(type(self).forward, kwargs)
        if input_ids is None or inputs_embeds is not None:
            raise ManticoreError("forward: a classifier reads input_ids, and no inputs_embeds. Fix: give input_ids")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        passes, together = self._passes(given, kwargs)
        logits = []
        # a loop, not a comprehension: that would be a frame more up to Python 3.11
        for each in passes:
            logits.append(self._read(each, nn.Module.__call__))
        output = self._answer(together(logits), input_ids, attention_mask, labels)
        return output.to_tuple() if return_dict is False else output


class OfSequences(OneDocument):
    """Reads a sequence's last token. Heads have no bias."""

    def _answer(
        self, by_token: Tensor, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None
    ) -> SequenceClassifierOutputWithPast:
        logits = pick(by_token, last_token(input_ids, attention_mask, self.config.pad_token_id))
        return SequenceClassifierOutputWithPast(loss=self._pooled_loss(logits, labels), logits=logits)  # type: ignore[arg-type]


class OfTokens(OneDocument):
    """Reads every token. Heads have a bias, and no dropout before them."""

    head_bias = True

    def _answer(
        self, by_token: Tensor, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None
    ) -> TokenClassifierOutput:
        loss = None if labels is None else self.loss_function(by_token, labels, self.config)
        return TokenClassifierOutput(loss=loss, logits=by_token)  # type: ignore[arg-type]
