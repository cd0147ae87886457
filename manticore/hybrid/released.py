"""Gated mixing as the published method's released code computes it, whole.

Shapes as in :mod:`manticore.hybrid.gated`, D = max d, E_k the table of component k, ``[V, d_k]``:

- ``h = sum_k a(0)_k pad(E_k[ids])``, tables alone: no positions, no dropout;
- every block as in the gated formula; but before its first layers a component does to what it reads what its family
  does to embeddings (learned positions are added, in full and for that component only), and after its last layers its
  final norm applies, inside its branch and before its projector;
- ``logits = sum_k a(0)_k E_k cut(h, d_k)``: heads are tied to the tables, mixed with the first block's weights, and no
  norm stands before them.

The tables are fresh, drawn from N(0, 0.02): nothing of the parents' own embeddings and heads is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.vocabulary import exchange_rows, with_vocabulary
from manticore.errors import ManticoreError
from manticore.hybrid.mixing import Features, Route
from manticore.hybrid.vocabularies import Vocabulary, common_vocabulary
from manticore.seeding import derive_seed

if TYPE_CHECKING:
    from manticore.hybrid.modeling import ManticoreForCausalLM

_TABLE_STD = 0.02


class Branches:
    """Joins components as the released code does, for one pass: the norms are inside the branches.

    Args:
        hybrid: with ``config.released``, a supernet or one path.
        inputs: what each component that runs is given; the first block's are given what the tables make instead.
    """

    def __init__(self, hybrid: ManticoreForCausalLM, inputs: dict[int, dict[str, Any]]) -> None:
        self.hybrid, self.mixing = hybrid, hybrid.mixing
        route = self.mixing.route()
        tables = {k: hybrid.component(k).get_input_embeddings()(inputs[k]["input_ids"]) for k in route.embedded}
        # tables are mixed alone; each component then adds positions of its own to the mixture
        for k, hidden in self.mixing.enter(0, tables, route.blocks[0]).items():
            inputs[k]["inputs_embeds"] = hidden

    def route(self) -> Route:
        """What runs; what the first block reads is that block's own already."""
        route = self.mixing.route()
        return Route(route.blocks[0], route.blocks, route.used)

    def enter(self, n: int, features: Features, components: Sequence[int]) -> Features:
        """As in every gated hybrid, but for the first block, whose features were mixed before positions were added."""
        return self.mixing.enter(n, features, components) if n else features

    def head_inputs(self, features: Features) -> Features:
        """The features of each branch, for its own norm."""
        return features

    def logits(self, normed: Mapping[int, Any], logits_to_keep: int | Tensor, states: list[Tensor] | None) -> Features:
        """Per component whose table is read at the end its logits ``[B, t, V]``.

        Args:
            normed: what each component of the last block returned.
            logits_to_keep: the last so many positions only, or a tensor of positions; 0 keeps all.
            states: what left the last block becomes what left its norm there.
        """
        features = {k: output.last_hidden_state for k, output in normed.items()}
        if states is not None:
            states[-len(features) :] = features.values()
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        read = self.mixing.head_inputs({k: hidden[:, kept] for k, hidden in features.items()})
        heads: dict[int, Any] = {k: self.hybrid.component(k).get_output_embeddings() for k in read}
        return {k: heads[k](hidden)[..., : self.hybrid.config.vocab_size] for k, hidden in read.items()}


@torch.no_grad()
def fresh_tables(components: Sequence[PreTrainedModel | None], vocab_size: int, seed: int) -> None:
    """Give every component a new table of ``vocab_size`` rows from N(0, 0.02) and a head tied to it, in place.

    Args:
        components: K causal LMs; None where one was dropped. What a discretized hybrid has dropped stays dropped.
        vocab_size: V.
        seed: of the draw, which differs from component to component.
    """
    for k, component in enumerate(components):
        if component is None:
            continue
        with_vocabulary(component, vocab_size)
        generator = torch.Generator().manual_seed(derive_seed(seed, "released tables", k))

        def drawn(old: Tensor, generator: torch.Generator = generator) -> Tensor:
            if old.is_meta:
                return torch.empty_like(old)
            values = torch.empty(old.shape).normal_(std=_TABLE_STD, generator=generator)
            return values.to(old.device, old.dtype)

        exchange_rows(component, vocab_size, drawn)
        component.tie_weights()


def tie_heads(name: str, component: PreTrainedModel) -> None:
    """Tie a component's head to its embeddings, in place, so that it can be part of the released function.

    Raises:
        ManticoreError: its tables are not as wide as its layers, its head has a bias, or its family cannot tie them.
    """
    embeddings, head = component.get_input_embeddings(), component.get_output_embeddings()
    width = component.config.hidden_size
    why = None
    if not isinstance(head, nn.Linear) or getattr(embeddings, "weight", torch.empty(0)).shape[-1:] != (width,):
        why = "its embeddings and head are not tables of the width of its layers"
    elif head.bias is not None:
        why = "its head has a bias"
    if why is None:
        component.config.tie_word_embeddings = True
        component.all_tied_weights_keys = component.get_expanded_tied_weights_keys(all_submodels=True)
        component.tie_weights()
        if component.get_output_embeddings().weight is not component.get_input_embeddings().weight:  # type: ignore[union-attr]
            why = "its family cannot tie its head to its embeddings"
    if why is not None:
        raise ManticoreError(_refused(name, component, why))


def released_vocabulary(
    names: Sequence[str],
    components: Sequence[PreTrainedModel],
    carried: Sequence[PreTrainedTokenizerBase | None],
    owner: int | None,
    given: PreTrainedTokenizerBase | None,
) -> Vocabulary:
    """The vocabulary of the fresh tables: a row for each token of the one tokenizer; no component is re-embedded.

    Args:
        names: what errors call the components.
        components: loaded.
        carried: the tokenizer beside each.
        owner: the component whose tokenizer is taken; None where all have the same.
        given: a tokenizer that speaks for all.

    Raises:
        ManticoreError: tokenizers differ and none was chosen, or the chosen component carries none.
    """
    if given is not None:
        return Vocabulary(len(given), given)
    if owner is None:
        shared = common_vocabulary(names, components, carried, given)
        return shared if shared.tokenizer is None else replace(shared, size=len(shared.tokenizer))
    kept = carried[owner]
    if kept is None:
        raise ManticoreError(
            f"combine: {names[owner]} carries no tokenizer. Fix: choose a component that does, or give a loaded one"
        )
    return Vocabulary(len(kept), kept, owner, speaker=owner)


@torch.no_grad()
def check_released(hybrid: ManticoreForCausalLM, names: Sequence[str]) -> None:
    """Refuse components that do more between table, layers and head than the released function has a place for.

    At the vertex of a component the released function is that component's own, with its fresh tables.

    Raises:
        ManticoreError: it is not, for a family that scales its logits, for instance.
    """
    before = hybrid.mixture_weights
    ids = torch.arange(8, device=hybrid.device)[None] % hybrid.config.vocab_size
    try:
        for k, name in enumerate(names):
            component = hybrid.component(k)
            hybrid.set_mixture_weights([k] * hybrid.config.num_blocks)
            alone = component(input_ids=ids, use_cache=False).logits[..., : hybrid.config.vocab_size]
            if not torch.allclose(hybrid(input_ids=ids).logits, alone, rtol=1e-4, atol=1e-5):
                raise ManticoreError(_refused(name, component, "it changes embeddings or logits in ways of its own"))
    finally:
        hybrid.set_mixture_weights(before)


def _refused(name: str, component: PreTrainedModel, why: str) -> str:
    return (
        f"combine: {name}: family {component.config.model_type!r} has no place in the released function: {why}. "
        "Fix: another checkpoint, or gated mixing without released"
    )


def refuse_released(config: Any, what: str) -> None:
    """Refuse what needs the parents' own embeddings, or a head of another kind.

    Raises:
        ManticoreError: the hybrid computes the released function.
    """
    if config.released:
        raise ManticoreError(
            f"{what}: this hybrid computes the released gated function, which has fresh embeddings tied to its heads "
            "and no such step. Fix: combine without released"
        )
