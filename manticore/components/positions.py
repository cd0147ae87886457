"""How many positions a component has, where its family keeps them in a table: learned embeddings, fixed sines, masks.

Rotary, relative and recurrent families have no such end; ``max_position_embeddings`` then says only how far they were
trained.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from manticore.errors import ManticoreError


def token_embeddings(model: PreTrainedModel) -> nn.Module:
    """The embeddings of a model's tokens.

    Raises:
        ManticoreError: its class does not say where they are.
    """
    try:
        found = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        found = None
    if not isinstance(found, nn.Module):
        raise ManticoreError(
            f"a {type(model).__name__} does not say where its embeddings are. "
            "Fix: define get_input_embeddings in its class"
        )
    return found


def tabulated_positions(model: PreTrainedModel) -> int | None:
    """The most tokens of one sequence that `model` can take; None where nothing ends.

    A table is an embedding beside that of the tokens, or a buffer of two or more dimensions, with as many rows as the
    configuration has positions; layers of stacks say it themselves (``positions``).
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    tokens = token_embeddings(model)
    for module in model.modules():
        if getattr(module, "positions", None) == limit:
            return limit
        if isinstance(module, nn.Embedding) and module is not tokens:
            # OPT and its like leave some first rows unused
            rows = module.num_embeddings - int(getattr(module, "offset", 0))
            if rows == limit:
                return limit
        if any(buffer.dim() > 1 and limit in buffer.shape for buffer in module.buffers(recurse=False)):
            return limit
    return None
