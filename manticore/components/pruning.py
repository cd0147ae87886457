"""Takes out of a component what a discretized hybrid does not keep: layers, embeddings, head.

Placeholders stay where something was taken out, so that layer indices, layer types and cache slots of the kept
layers are what the family's code expects.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manticore.errors import ManticoreError


class _Shared:
    """Holds a module that copies of its owner share: on the meta device there is nothing to copy."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class Dropped(nn.Module):
    """Stands where a module was. It owns no weights, but what it stands for can still be read from it.

    Masks depend on attributes of layers, and the initialisers of some families walk through all layers and the head;
    so the module itself stays behind on the meta device, where it takes no memory.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # outside the module registry, so that it has no part in states, devices and counts
        self.__dict__["_dropped"] = _Shared(module.to("meta"))

    def __getattr__(self, name: str) -> Any:
        if name == "_dropped":
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._dropped.module, name)


class DroppedEmbedding(Dropped):
    """Embeddings without a table: the right shape, so that masks and positions can be derived, and zeros."""

    def __init__(self, table: nn.Module) -> None:
        like = table.weight.new_empty(0)  # type: ignore[operator]
        super().__init__(table)
        # holds no number, but follows the model to another precision or device
        self.register_buffer("like", like, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` → zeros ``[B, T, width]``."""
        width = self._dropped.module.embedding_dim
        return torch.zeros(*input_ids.shape, width, device=input_ids.device, dtype=self.like.dtype)


def prune_component(
    model: PreTrainedModel, layers: nn.ModuleList, *, keep: Iterable[int], embeddings: bool, head: bool
) -> None:
    """Replace, in place, what is not kept by placeholders.

    Args:
        model: a causal LM.
        layers: its decoder layers.
        keep: indices of the layers that stay.
        embeddings: whether its token embeddings stay.
        head: whether its head stays.

    Raises:
        ManticoreError: the family shares weights between layers, so that dropping one would leave another without.
    """
    kept = set(keep)
    if kept != set(range(len(layers))) and _ties_layers(model, layers):
        raise ManticoreError(
            f"discretize: family {model.config.model_type!r} shares weights between its layers, so no layer can be "
            "dropped. Fix: keep the supernet soft, or use another component"
        )
    for index, layer in enumerate(layers):
        if index not in kept:
            layers[index] = Dropped(layer)
    if not (embeddings and head):
        # a kept partner must not be tied to a dropped one when the model is loaded
        model.config.tie_word_embeddings = False
    if not embeddings:
        model.set_input_embeddings(DroppedEmbedding(model.get_input_embeddings()))
    if not head:
        model.set_output_embeddings(Dropped(model.get_output_embeddings()))
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _ties_layers(model: PreTrainedModel, layers: nn.ModuleList) -> bool:
    prefix = next(name for name, module in model.named_modules() if module is layers) + "."
    ties: dict[str, str] = model.all_tied_weights_keys
    return any(name.startswith(prefix) for pair in ties.items() for name in pair)
