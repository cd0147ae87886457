"""What a hybrid's forward takes, checked before anything runs: a wrong shape ends in one line, not inside a layer.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from manticore.components.shapes import expect_shape
from manticore.errors import ManticoreError

if TYPE_CHECKING:
    from manticore.hybrid.decoding import HybridCache


class Part(NamedTuple):
    """Tokens that are read in one pass."""

    input_ids: Tensor
    """``[n, L]``."""
    attention_mask: Tensor | None
    """``[n, cached + L]``."""
    position_ids: Tensor | None
    """``[n, L]``."""

    def for_each(self, components: Iterable[int], cache: HybridCache | None = None) -> dict[int, dict[str, Any]]:
        """What each component's forward takes."""
        return {
            k: {
                **self._asdict(),
                "cache": cache.views[k] if cache is not None else None,
                "use_cache": cache is not None,
            }
            for k in components
        }


def require_ids(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The ids ``[B, T]``.

    Raises:
        ManticoreError: there are none, or embeddings beside them.
    """
    if input_ids is None or inputs_embeds is not None:
        raise ManticoreError("forward: inputs_embeds has no meaning with several embeddings. Fix: give input_ids")
    return input_ids


def check_inputs(
    input_ids: Tensor, attention_mask: Any, position_ids: Tensor | None, *, cached: int, vocab_size: int
) -> None:
    """Refuse ids, masks and positions that no layer can make sense of.

    Args:
        input_ids: ``[B, T]``. Their range is looked at on a CPU only: elsewhere reading it would wait for the device.
        attention_mask: ``[B, cached + T]`` or None.
        position_ids: ``[B or 1, T]`` or None.
        cached: tokens before these.
        vocab_size: V.

    Raises:
        ManticoreError: another shape, no tokens at all, ids that are not whole numbers from 0 to V - 1.
    """
    fix = "input_ids[None] for one sequence" if input_ids.dim() == 1 else "one row of ids per sequence, at least one id"
    expect_shape("input_ids", input_ids, ["batch", "tokens"], fix)
    batch, tokens = input_ids.shape
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ManticoreError(f"forward: input_ids are {input_ids.dtype} (expected torch.long). Fix: give token ids")
    if attention_mask is not None:
        fix = "1 for tokens, cached ones too, 0 for padding; each component makes its own causal mask of it"
        expect_shape("attention_mask", attention_mask, [batch, cached + tokens], fix)
    if position_ids is not None:
        fix = "a position per new token, or leave them out"
        expect_shape("position_ids", position_ids, [(batch, 1), tokens], fix)
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(input_ids):
        low, high = (int(end) for end in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise ManticoreError(
                f"forward: input_ids go from {low} to {high}, the vocabulary from 0 to {vocab_size - 1}. "
                "Fix: ids of the hybrid's own tokenizer; padding has an id too, and 0 in attention_mask"
            )


def check_outputs(input_ids: Tensor, labels: Tensor | None, logits_to_keep: int | Tensor) -> None:
    """Refuse labels and positions that do not go with the ids.

    Raises:
        ManticoreError: labels of another shape, or beside ``logits_to_keep``; a negative number of logits.
    """
    every = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if isinstance(logits_to_keep, int) and logits_to_keep < 0:
        raise ManticoreError(
            f"forward: logits_to_keep is {logits_to_keep} (expected 0 for all, how many of the last, or a tensor of "
            "positions). Fix: give one of these"
        )
    if labels is None:
        return
    expect_shape("labels", labels, input_ids.shape, "a label per token, as input_ids has; -100 where none counts")
    if not every:
        raise ManticoreError("forward: labels need all logits. Fix: leave logits_to_keep out")
