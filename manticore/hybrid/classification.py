"""Hybrids that classify: a head per component on its last features, mixed as language-model heads are.

    logits = sum_k w_k · W_k norm_k(x_k),   w the output weights

The components' own heads are left out. A family's scaling or capping of language-model logits does not apply, as in
transformers' own classes for classification.

Shapes: B batch, T tokens, D width, C classes, K components.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from manticore.components.classifier import Classifier, OfSequences, OfTokens, Together
from manticore.components.extra_arguments import positions_of_documents
from manticore.components.extra_outputs import asked_for_no_more
from manticore.components.loading import own_tokenizer
from manticore.components.pair_head import ReadsPairs
from manticore.components.quiet import quiet_loading
from manticore.components.rebuilding import named_tensors
from manticore.components.runner import Runner
from manticore.components.selfcheck import self_check
from manticore.components.token_layout import put_back, rearranged
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.discretize import copied_config
from manticore.hybrid.inputs import Part, check_inputs
from manticore.hybrid.modeling import heads_mixed
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.hybrid.rehearsal import rehearse
from manticore.hybrid.released import refuse_released

M = TypeVar("M", bound="ManticoreClassifier")


class ManticoreClassifier(Classifier, ManticorePreTrainedModel):
    """What hybrids with heads for classes share; see :class:`ManticoreForSequenceClassification`."""

    keeps_lm_heads = False
    _read = heads_mixed

    def _add_heads(self) -> None:
        """``score``: a head per component whose features reach the output."""
        refuse_released(self.config, "classifier")
        path = self.config.path
        self.score: nn.ModuleDict = nn.ModuleDict(
            {
                str(k): self._make_head(runner.head_width, self.config.num_labels or 0)
                for k, runner in enumerate(self.runners)
                if runner is not None and (path is None or path[-1] == k)
            }
        )

    def _heads(self) -> Iterator[nn.Module]:
        for k, head in self.score.items():
            yield head.to(self.component(int(k)).dtype)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and any(module is part for part in self.score.modules()):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)

    def _passes(self, given: dict[str, Any], extra: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Together]:
        """Rows of one document each."""
        check_inputs(*given.values(), cached=0, vocab_size=self.config.vocab_size)
        ids, mask, positions = given.values()
        batch, tokens = ids.shape
        positions = positions_of_documents(extra, positions, ids.shape, ids.device)
        pieces = rearranged(mask, positions, batch, tokens, None, stateful=lambda: None)
        if pieces is None:
            return [{**given, "position_ids": positions}], lambda logits: logits[0]
        passes = [Part(each.take(ids), each.mask, each.positions(positions, batch))._asdict() for each in pieces]
        return passes, lambda logits: put_back(pieces, logits, batch, tokens)

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
        labels = {"num_labels": num_labels, "id2label": id2label, "problem_type": problem_type}
        made: M = cls._with_heads(config, model, given, seed, **labels)
        made.tokenizer = own_tokenizer(model)
        return made


class ManticoreForSequenceClassification(OfSequences, ManticoreClassifier):
    """A hybrid that classifies sequences by their last token; a supernet or one path.

    :meth:`from_causal_lm` makes one of a hybrid or a causal LM, ``from_pretrained`` loads one.
    """


class ManticoreForTokenClassification(OfTokens, ManticoreClassifier):
    """A hybrid that classifies every token; a supernet or one path. Heads have a bias, and no dropout before them."""


class ManticoreForPairClassification(ReadsPairs, ManticoreClassifier):
    """A hybrid that classifies pairs of documents, for Retrieval of the Long Range Arena.

    The documents do not see each other. Saved and loaded by its own class: no ``Auto`` class leads to it.
    """

    def _read(self, given: Mapping[str, Any], read: Callable[[Any, Tensor], Tensor]) -> Tensor:
        check_inputs(*given.values(), cached=0, vocab_size=self.config.vocab_size)
        return super()._read(given, read)


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
