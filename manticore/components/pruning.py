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


class DroppedLayer(nn.Module):
    """Stands where a decoder layer was; it is never called, but read for the attributes that masks depend on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
                setattr(self, name, value)


class DroppedEmbedding(nn.Module):
    """Embeddings without a table: the right shape, so that masks and positions can be derived, and zeros."""

    like: Tensor

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = width
        # holds no number, but follows the model to another precision or device
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` → zeros ``[B, T, width]``."""
        return torch.zeros(*input_ids.shape, self.width, device=input_ids.device, dtype=self.like.dtype)


class DroppedHead(nn.Module):
    """Stands where a head was; it is never called."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Nothing is asked of a dropped head but to be there."""
        return hidden


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
            layers[index] = DroppedLayer(layer)
    if not (embeddings and head):
        # a kept partner must not be tied to a dropped one when the model is loaded
        model.config.tie_word_embeddings = False
    if not embeddings:
        table: Any = model.get_input_embeddings()
        model.set_input_embeddings(DroppedEmbedding(table.embedding_dim, table.weight.dtype))
    if not head:
        model.set_output_embeddings(DroppedHead())
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _ties_layers(model: PreTrainedModel, layers: nn.ModuleList) -> bool:
    prefix = next(name for name, module in model.named_modules() if module is layers) + "."
    ties: dict[str, str] = model.all_tied_weights_keys
    return any(name.startswith(prefix) for pair in ties.items() for name in pair)
