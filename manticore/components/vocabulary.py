"""Gives a component fresh embeddings and a fresh head for a task that brings its own vocabulary (MAD, LRA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manticore.components.positions import token_embeddings
from manticore.components.pruning import DroppedEmbedding
from manticore.errors import ManticoreError
from manticore.seeding import derive_seed

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def with_vocabulary(model: PreTrainedModel, vocab_size: int, *, seed: int = 0) -> PreTrainedModel:
    """Replace embeddings and head, in place, by freshly initialised ones of ``vocab_size`` rows.

    Both are drawn by the family's own initialiser; layers, norms and position tables stay. Special tokens are
    unset: the old ids mean something else now, and a padding id would keep its row from training. A part that a
    discretized hybrid has dropped stays dropped.

    Args:
        model: a causal LM.
        vocab_size: rows of the new embeddings, at least 1.
        seed: of the draw; the same seed gives the same rows.

    Returns:
        The same model.

    Raises:
        ManticoreError: ``vocab_size`` below 1.
    """
    if vocab_size < 1:
        raise ManticoreError(f"with_vocabulary: vocab_size is {vocab_size}. Fix: give 1 or more")
    config = model.config
    for name in SPECIAL_TOKENS:
        for holder in (config, getattr(model, "generation_config", None)):
            if getattr(holder, name, None) is not None:
                setattr(holder, name, None)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(seed, "vocabulary"))
        for module in exchange_rows(model, vocab_size, lambda old: old.new_zeros(vocab_size, *old.shape[1:])):
            _initialise(model, module)
    model.tie_weights()
    return model


@torch.no_grad()
def exchange_rows(model: PreTrainedModel, vocab_size: int, new_rows: Callable[[Tensor], Tensor]) -> list[nn.Module]:
    """Put other rows in place of those of embeddings, head and head bias, in place; tables that were tied are apart.

    Args:
        model: a causal LM; what a discretized hybrid has dropped of it stays dropped.
        vocab_size: rows of the new tables.
        new_rows: an old table ``[rows, …]`` → the new one ``[vocab_size, …]``.

    Returns:
        The modules that got new rows.
    """
    embeddings: Any = token_embeddings(model)
    head: Any = model.get_output_embeddings()
    changed: list[nn.Module] = []
    if not isinstance(embeddings, DroppedEmbedding):
        embeddings.weight = nn.Parameter(new_rows(embeddings.weight.detach()))
        embeddings.num_embeddings = vocab_size
        embeddings.padding_idx = None
        changed.append(embeddings)
    if isinstance(head, nn.Linear):
        head.weight = nn.Parameter(new_rows(head.weight.detach()))
        head.out_features = vocab_size
        if head.bias is not None:
            head.bias = nn.Parameter(new_rows(head.bias.detach()))
        changed.append(head)
    model.config.vocab_size = vocab_size
    parts: tuple[Any, ...] = (model, model.base_model)
    for part in parts:
        if hasattr(part, "vocab_size"):
            part.vocab_size = vocab_size
    return changed


def _initialise(model: PreTrainedModel, module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    model._init_weights(module)
