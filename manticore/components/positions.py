"""How many positions a component has, where its family keeps them in a table: learned embeddings, fixed sines, masks.

Rotary, relative and recurrent families have no such end; ``max_position_embeddings`` then says only how far they were
trained.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "seq_length")
"""What families call it; the first is transformers' own name, to which most map theirs."""


def context_length(config: PreTrainedConfig) -> int | None:
    """The tokens of one sequence that a configuration was made for; None where it names no number, as a Mamba's."""
    text = config.get_text_config()
    for name in _NAMES:
        length = getattr(text, name, None)
        if isinstance(length, int) and not isinstance(length, bool) and length > 0:
            return length
    return None


def tabulated_positions(model: PreTrainedModel) -> int | None:
    """The most tokens of one sequence that `model` can take; None where nothing ends.

    A table is an embedding beside that of the tokens, or a buffer of two or more dimensions, with as many rows as the
    configuration has positions; layers of stacks (``positions``) and MPT's (``max_seq_length``) say it themselves.
    """
    limit = context_length(model.config)
    if limit is None:
        return None
    tokens: Any = model.get_input_embeddings()
    for module in model.modules():
        if limit in (getattr(module, "positions", None), getattr(module, "max_seq_length", None)):
            return limit
        if isinstance(module, nn.Embedding) and module is not tokens:
            # OPT and its like leave some first rows unused
            rows = module.num_embeddings - int(getattr(module, "offset", 0))
            if rows == limit:
                return limit
        if any(buffer.dim() > 1 and limit in buffer.shape for buffer in module.buffers(recurse=False)):
            return limit
    return None
