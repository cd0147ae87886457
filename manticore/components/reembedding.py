"""Gives a component the vocabulary of another tokenizer: its rows are put where that tokenizer's tokens are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.generation_settings import translate_ids
from manticore.components.token_matching import Matching
from manticore.components.vocabulary import SPECIAL_TOKENS, exchange_rows
from manticore.errors import ManticoreError


def reembed(
    model: PreTrainedModel, matching: Matching, tokenizer: PreTrainedTokenizerBase, name: str = "component"
) -> None:
    """Rearrange rows of embeddings, head and head bias, in place, so that ids of ``tokenizer`` mean what they say.

    A row with one source is copied bit for bit; with several it is their mean, taken in float32; without any it is the
    mean of all tokens' rows. Ties stay. Special ids of the configuration become those of ``tokenizer``, ends those of
    its tokens that say the same.

    Args:
        model: a causal LM, with the tokenizer that was matched as the other one.
        matching: from ``tokenizer`` to the model's own.
        tokenizer: what ids mean from now on.
        name: what errors call the model.

    Raises:
        ManticoreError: fewer rows than its tokenizer has tokens, or a head that is not a linear map.
    """
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if not isinstance(embeddings, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ManticoreError(
            f"combine: {name} has a {type(embeddings).__name__} and a {type(head).__name__} for its tokens (expected "
            "an Embedding and a Linear), so its rows cannot be rearranged. Fix: keep the tokenizer of this component"
        )
    rows = min(embeddings.weight.shape[0], head.weight.shape[0])
    if rows < matching.known:
        raise ManticoreError(
            f"combine: {name} has {rows} embedding rows for {matching.known} tokens. "
            "Fix: give the checkpoint that belongs to the tokenizer"
        )
    translate_ids(model, matching, tokenizer.eos_token_id, name)
    for holder in (model.config, model.generation_config):
        for token in SPECIAL_TOKENS:
            # where there was none, a padding id would now keep its row from training
            if token != "eos_token_id" and getattr(holder, token, None) is not None:
                setattr(holder, token, getattr(tokenizer, token, None))
    padding = None if embeddings.padding_idx is None else tokenizer.pad_token_id
    # the tokenizer in its folder is no longer its own
    model.config.name_or_path = ""
    trains = [embeddings.weight.requires_grad, head.weight.requires_grad]
    for module, trained in zip(exchange_rows(model, len(matching.sources), lambda o: rearranged(o, matching)), trains):
        module.requires_grad_(trained)
    embeddings.padding_idx = padding
    model.tie_weights()


def rearranged(table: Tensor, matching: Matching) -> Tensor:
    """``[rows, …]`` of the other tokenizer → ``[tokens, …]`` of the kept one."""
    new = (
        table[: matching.known].float().mean(0).to(table.dtype).expand(len(matching.sources), *table.shape[1:]).clone()
    )
    by_length: dict[int, list[int]] = {}
    for index, pieces in enumerate(matching.sources):
        by_length.setdefault(len(pieces), []).append(index)
    for length, ids in by_length.items():
        if length == 1:
            new[ids] = table[[matching.sources[index][0] for index in ids]]
        elif length:
            parts = torch.tensor([matching.sources[index] for index in ids], device=table.device)
            # one after another, so that a row does not depend on how many there are
            total = table[parts[:, 0]].float()
            for position in range(1, length):
                total = total + table[parts[:, position]].float()
            new[ids] = (total / length).to(table.dtype)
    return new
