"""How many positions a component has, where its family keeps them in a table: learned embeddings, fixed sines, masks.

Rotary, relative and recurrent families have no such end; ``max_position_embeddings`` then says only how far they were
trained. One kind of rotary embedding ends there too: ``dynamic`` turns the longer, the longer the text has become, and
goes on so for shorter ones, so that what it computes beyond its positions depends on the calls before.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from manticore.components.checkpoint_folder import POSITIONS
from manticore.errors import ManticoreError

ROPE_SWITCH = "original_max_position_embeddings"


def context_length(config: PreTrainedConfig) -> int | None:
    """The tokens of one sequence that a configuration was made for; None where it names no number, as a Mamba's."""
    text = config.get_text_config()
    for name in POSITIONS:
        length = getattr(text, name, None)
        if isinstance(length, int) and not isinstance(length, bool) and length > 0:
            return length
    return None


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
    configuration has positions; layers of stacks (``positions``) and MPT's (``max_seq_length``) say it themselves.
    """
    limit = context_length(model.config)
    if limit is None:
        return None
    if "dynamic" in rope_types(model.config):
        return limit
    tokens = token_embeddings(model)
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


def rope_types(config: PreTrainedConfig) -> set[str]:
    """The kinds of rotary embedding that a configuration asks for; families may have one per kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    each = [settings, *(value for value in settings.values() if isinstance(value, Mapping))]
    return {str(one["rope_type"]) for one in each if one.get("rope_type")}


def rope_switch(config: PreTrainedConfig) -> int | None:
    """After how many positions a rotary embedding turns otherwise for all of them (``longrope``); None if it does not.

    The longest sequence of a batch decides for all of its rows.
    """
    if "longrope" not in rope_types(config):
        return None
    settings = config.rope_parameters
    each = [config.to_dict(), settings, *(value for value in settings.values() if isinstance(value, Mapping))]
    return min((one[ROPE_SWITCH] for one in each if isinstance(one.get(ROPE_SWITCH), int)), default=None)
