"""Hybrids that classify: a linear head per component on its last features, mixed as language-model heads are.

    logits = sum_k w_k · W_k norm_k(x_k),   w the output weights

The components' own heads are left out. A family's scaling or capping of language-model logits does not apply, as in
transformers' own classes for classification.

Shapes: B batch, T tokens, D width, C classes, K components.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput

from manticore.components.extra_arguments import loss_arguments, positions_of_documents
from manticore.components.extra_outputs import asked_for_no_more
from manticore.components.labels import set_labels
from manticore.components.last_token import last_token, pick, positions_of
from manticore.components.loading import own_tokenizer
from manticore.components.quiet import quiet_loading
from manticore.components.rebuilding import named_tensors, rebuilt
from manticore.components.runner import Runner
from manticore.components.selfcheck import self_check
from manticore.components.token_layout import put_back, rearranged
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.discretize import copied_config
from manticore.hybrid.inputs import Part, check_inputs, require_ids
from manticore.hybrid.mixing import Features
from manticore.hybrid.modeling import by_component, own_forwards
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.hybrid.rehearsal import rehearse
from manticore.hybrid.released import refuse_released
from manticore.seeding import derive_seed

M = TypeVar("M", bound="ManticoreClassifier")


class ManticoreClassifier(ManticorePreTrainedModel):
    """What hybrids with heads for classes share; see :class:`ManticoreForSequenceClassification`."""

    keeps_lm_heads = False
    # the loss is a mean over the batch
    accepts_loss_kwargs = False
    head_bias = False
    documents = 1
    """Sequences that an example consists of."""

    def _add_heads(self) -> None:
        """``score``: a head per component whose features reach the output."""
        refuse_released(self.config, "classifier")
        path = self.config.path
        self.score = nn.ModuleDict(
            {
                str(k): self._make_head(runner.head_width, self.config.num_labels or 0)
                for k, runner in enumerate(self.runners)
                if runner is not None and (path is None or path[-1] == k)
            }
        )

    def _make_head(self, width: int, classes: int) -> nn.Module:
        return nn.Linear(width, classes, bias=self.head_bias)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and any(module is part for part in self.score.modules()):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)

    def _mixed(self, part: Part, read: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """``read(head, features [n, L, D])`` of every component, mixed with the output weights."""
        self.check_adapters()
        # each family has its own default positions; counted from the mask, padding on the left changes nothing
        part = part._replace(position_ids=positions_of(part.attention_mask, part.position_ids))
        self._check_positions(part.input_ids.shape[1], 0, part.position_ids)
        route = self.mixing.route()
        with own_forwards(self, part.for_each(route.used), self.mixing, head=False) as (outermost, recordings):
            returned = outermost()
        outputs: Features = {}
        for k, normed in by_component(returned, recordings, route).items():
            head = self.score[str(k)]
            outputs[k] = read(head, normed.last_hidden_state.to(next(head.parameters()).dtype))
        return self.mixing.mixed(outputs)

    def _by_token(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, extra: Mapping[str, Any]
    ) -> Tensor:
        """Every head on every token, ``[B, T, C]``, as of rows of one document each."""
        loss_arguments(type(self).forward, extra)
        check_inputs(input_ids, attention_mask, position_ids, cached=0, vocab_size=self.config.vocab_size)
        batch, tokens = input_ids.shape
        position_ids = positions_of_documents(extra, position_ids, input_ids.shape, input_ids.device)
        pieces = rearranged(attention_mask, position_ids, batch, tokens, None, stateful=lambda: None)
        if pieces is None:
            return self._mixed(Part(input_ids, attention_mask, position_ids), apply)
        logits = [
            self._mixed(Part(piece.take(input_ids), piece.mask, piece.positions(position_ids, batch)), apply)
            for piece in pieces
        ]
        return put_back(pieces, logits, batch, tokens)

    @classmethod
    def from_causal_lm(
        cls: type[M],
        model: PreTrainedModel,
        *,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        problem_type: str | None = None,
        seed: int = 0,
    ) -> M:
        """A classifier with copies of a model's body, projectors and mixture weights, and fresh heads.

        Args:
            model: a hybrid, supernet or discretized, or any causal LM of transformers, which becomes the only
                component; it is left as it is.
            num_labels: C; None takes ``id2label``'s, or the configuration's.
            id2label: names of the classes.
            problem_type: ``"single_label_classification"``, ``"multi_label_classification"`` or ``"regression"``;
                None lets the first labels decide, as in transformers.
            seed: of the heads.

        Raises:
            ManticoreError: no class at all, two counts of classes, or a model that cannot be cut into blocks.
        """
        if isinstance(model, ManticorePreTrainedModel):
            config, given = copied_config(model), named_tensors(model)
        else:
            config, given = _alone(model, seed), named_tensors(model, "component_0.")
        set_labels(config, num_labels, id2label, problem_type)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "classification heads"))
            made = rebuilt(lambda: cls(config), given, device=model.device, stage="from_causal_lm", fresh="score.")
            for k, head in made.score.items():
                for part in head.to(made.component(int(k)).dtype).modules():
                    made._init_weights(part)
        made.tokenizer = own_tokenizer(model)
        return made.train(model.training)


class ManticoreForSequenceClassification(ManticoreClassifier):
    """A hybrid that classifies sequences by their last token; a supernet or one path.

    :meth:`from_causal_lm` makes one of a hybrid or a causal LM, ``from_pretrained`` loads one.
    """

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
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Logits of every class.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 0 on padding on either side; without it ``config.pad_token_id`` tells padding.
            position_ids: ``[B, T]``; None counts from the mask where there is one.
            labels: ``[B]`` class indices, ``[B, C]`` of 0 and 1 for several labels, or numbers for regression.
            inputs_embeds: refused.
            use_cache: of no use: nothing is cached.
            return_dict: False returns a tuple.
            kwargs: packed documents as in :meth:`~manticore.ManticoreForCausalLM.forward`; what tools add that changes
                nothing.

        Returns:
            ``logits`` ``[B, C]``, with labels ``loss``.

        Raises:
            ManticoreError: ``inputs_embeds``, several sequences of which nothing tells where they end, or more tokens
                than a component has positions for.
        """
        input_ids = require_ids(input_ids, inputs_embeds)
        by_token = self._by_token(input_ids, attention_mask, position_ids, kwargs)
        logits = pick(by_token, last_token(input_ids, attention_mask, self.config.pad_token_id))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutputWithPast(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


class ManticoreForTokenClassification(ManticoreClassifier):
    """A hybrid that classifies every token; a supernet or one path. Heads have a bias, and no dropout before them."""

    head_bias = True

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
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Logits of every class at every token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 0 on padding on either side.
            position_ids: ``[B, T]``; None counts from the mask where there is one.
            labels: ``[B, T]`` class indices; -100 is ignored.
            inputs_embeds: refused.
            use_cache: of no use: nothing is cached.
            return_dict: False returns a tuple.
            kwargs: packed documents as in :meth:`~manticore.ManticoreForCausalLM.forward`; what tools add that changes
                nothing.

        Returns:
            ``logits`` ``[B, T, C]``, with labels ``loss``.

        Raises:
            ManticoreError: ``inputs_embeds``, or more tokens than a component has positions for.
        """
        input_ids = require_ids(input_ids, inputs_embeds)
        logits = self._by_token(input_ids, attention_mask, position_ids, kwargs)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        output = TokenClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


def apply(head: Any, features: Tensor) -> Tensor:
    """The head on the features as they are."""
    return head(features)


def _alone(model: PreTrainedModel, seed: int) -> ManticoreConfig:
    """The configuration of a hybrid whose only component is ``model``."""
    runner = Runner(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with quiet_loading(), asked_for_no_more(model):
            self_check(model, runner, seed=seed)
            rehearse(model)
    finally:
        for module in training:
            module.training = True
    component = copy.deepcopy(model.config)
    component.dtype = model.dtype
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    parts: dict[str, Any] = {name: getattr(model.config, name, None) for name in special}
    parts["component_0"] = component
    return ManticoreConfig(
        num_components=1,
        path=[0],
        layer_outputs=[runner.tuple_sizes],
        vocab_size=model.config.vocab_size,
        dtype=model.dtype,
        **parts,
    )
