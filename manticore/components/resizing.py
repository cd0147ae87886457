"""Gives a component more or fewer rows of embeddings and head: new tokens behind the ones it knows."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from manticore.components.pruning import Dropped, DroppedEmbedding


def resize_vocabulary(model: PreTrainedModel, known: int, wanted: int, *, mean_resizing: bool = True) -> None:
    """Resize embeddings and head in place, by transformers' own rule for new rows; ties stay.

    Rows beyond ``known``, which pad a table and belong to no token, are cut off first: a new token gets a row of the
    same kind whatever its component's table was padded to. Parts that a discretized hybrid dropped stay dropped.

    Args:
        model: a causal LM.
        known: rows that mean a token.
        wanted: rows afterwards.
        mean_resizing: draw new rows around the mean of the old ones; else as the family draws its first weights.
    """
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    whole = not isinstance(embeddings, DroppedEmbedding) and not isinstance(head, Dropped)
    for rows in (min(known, wanted), wanted):
        if whole:
            model.resize_token_embeddings(rows, mean_resizing=mean_resizing)
        else:
            _resize_what_is_left(model, rows, mean_resizing)


def _resize_what_is_left(model: PreTrainedModel, rows: int, mean_resizing: bool) -> None:
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if not isinstance(embeddings, DroppedEmbedding):
        model._get_resized_embeddings(embeddings, rows, mean_resizing=mean_resizing)
    if isinstance(head, nn.Linear):
        trains = head.weight.requires_grad
        resized = model._get_resized_lm_head(head, rows, mean_resizing=mean_resizing)
        model.set_output_embeddings(resized.requires_grad_(trains))
    parts: tuple[Any, ...] = (model.config, model, model.base_model)
    for part in parts:
        if hasattr(part, "vocab_size"):
            part.vocab_size = rows
