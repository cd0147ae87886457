"""What tools hand to ``forward`` beside its own arguments: used, of no consequence, or refused; never let fall.

Trainers, peft, collators and ``generate`` add arguments that most models of transformers take. Those that change
nothing pass; those that tell packed documents apart become positions; a misspelt one is refused.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from manticore.components.shapes import expect_shape
from manticore.components.token_layout import decided
from manticore.errors import ManticoreError
from manticore.registry import did_you_mean

_LOSS = ("num_items_in_batch", "ignore_index")
_OFFSETS, _LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k"), ("max_length_q", "max_length_k")
_DOCUMENTS = ("seq_idx", *_OFFSETS, *_LENGTHS)
_PACKED = "leave it out, or give what a packing collator makes"
# what the cache says too
_REPEATED = ("cache_position",)
_HARMLESS: dict[str, Any] = {
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    "use_cache": False,
    "is_causal": True,
}


def loss_arguments(forward: Callable[..., Any], given: Mapping[str, Any], *, packed: bool = True) -> dict[str, Any]:
    """Those of ``given`` that the loss reads, after all others were found to be of no consequence.

    Args:
        forward: the method that got them beside its own arguments.
        given: their values; None asks for nothing, whatever the name.
        packed: whether the model can tell packed documents apart, with :func:`positions_of_documents`.

    Raises:
        ManticoreError: an unknown name, or a value that asks for what this model cannot do.
    """
    documents = _DOCUMENTS if packed else ()
    for name, value in given.items():
        if value is None or name in _LOSS or name in documents or name in _REPEATED:
            continue
        if name == "token_type_ids":
            if not isinstance(value, Tensor) or decided(value.any())[0]:
                raise ManticoreError(
                    "forward: token_type_ids are not all 0, and there are no embeddings of types. Fix: leave them out"
                )
        elif name not in _HARMLESS:
            hint = did_you_mean(name, [*_own(forward), "token_type_ids", *_LOSS, *documents])
            raise ManticoreError(f"forward: unknown argument {name!r}{hint}")
        elif value is not _HARMLESS[name]:
            raise ManticoreError(
                f"forward: {name} is {value!r}, which this model cannot follow (expected {_HARMLESS[name]}). "
                "Fix: leave it out"
            )
    return {name: given[name] for name in _LOSS if given.get(name) is not None}


@cache
def _own(forward: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self")


def positions_of_documents(
    given: Mapping[str, Any], position_ids: Tensor | None, shape: torch.Size, device: torch.device
) -> Tensor | None:
    """``[B, T]`` positions that start anew with every packed document that ``given`` tells of.

    Args:
        given: ``seq_idx`` ``[B or 1, T]``, the document of every token, or ``cu_seq_lens_q`` ``[documents + 1]``, where
            documents begin and end in all tokens of the batch; what packing collators add.
        position_ids: ``[B or 1, T]``; they decide where they are given, and a warning says so where others disagree.
        shape: ``[B, T, …]`` of the tokens.
        device: of the positions.

    Raises:
        ManticoreError: shapes or numbers that no packed batch has, or lengths without the places of documents.
    """
    values = {name: given[name] for name in _DOCUMENTS if given.get(name) is not None}
    if not values:
        return position_ids
    batch, tokens = shape[:2]
    begins = torch.zeros(batch, tokens, dtype=torch.bool, device=device)
    if "seq_idx" in values:
        begins |= _changes(values["seq_idx"], batch, tokens).to(device)
    offsets = [values[name] for name in _OFFSETS if name in values]
    if offsets:
        for other in offsets[1:]:
            if other.shape != offsets[0].shape or decided((other != offsets[0]).any())[0]:
                raise ManticoreError("forward: cu_seq_lens_q and cu_seq_lens_k differ. Fix: give one, or equal ones")
        begins |= _placed(offsets[0], batch, tokens).to(device)
    elif "seq_idx" not in values and position_ids is None:
        raise ManticoreError(
            f"forward: {', '.join(values)} without cu_seq_lens_q says nothing of where documents begin. "
            "Fix: give position_ids or cu_seq_lens_q"
        )
    places = torch.arange(tokens, device=device).expand(batch, -1)
    counted = places - torch.where(begins, places, 0).cummax(1).values
    if position_ids is None:
        return counted
    anew = position_ids.expand(batch, -1).diff(dim=1) != 1
    if (offsets or "seq_idx" in values) and decided((anew != begins[:, 1:]).any())[0]:
        warnings.warn(
            f"position_ids start anew elsewhere than {' and '.join(set(values) - set(_LENGTHS))}: they decide",
            stacklevel=3,
        )
    return position_ids


def _changes(seq_idx: Any, batch: int, tokens: int) -> Tensor:
    """``[B, T]``: whether a token's document is another than that of the one before it."""
    expect_shape("seq_idx", seq_idx, [(batch, 1), tokens], _PACKED)
    changes = seq_idx.expand(batch, -1).diff(dim=1) != 0
    return torch.cat([torch.zeros_like(changes[:, :1]), changes], 1)


def _placed(offsets: Any, batch: int, tokens: int) -> Tensor:
    """``[B, T]``: whether a document begins at a token, of offsets into all tokens of the batch."""
    expect_shape("cu_seq_lens_q", offsets, ["documents + 1"], _PACKED)
    wrong = (offsets[0] != 0) | (offsets[-1] != batch * tokens) | (offsets.diff() <= 0).any()
    if decided(wrong)[0]:
        raise ManticoreError(
            f"forward: cu_seq_lens_q goes from {int(offsets[0])} to {int(offsets[-1])} (expected 0 to "
            f"{batch * tokens}, rising: every token in one document). Fix: the offsets of this batch"
        )
    flat = torch.zeros(batch * tokens, dtype=torch.bool, device=offsets.device)
    flat[offsets[:-1].long()] = True
    begins = flat.view(batch, tokens)
    begins[:, 0] = False
    return begins
