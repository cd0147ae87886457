"""Settings of a configuration that ask a model for more, or other, outputs; none of them changes a logit.

A hybrid reads hidden states and logits by name and puts stand-ins where layers were, so a component that also collects
router logits or attentions would look for layers that are not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_OFF: dict[str, Any] = {
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    "return_dict": True,
}


def ask_for_no_more(config: PreTrainedConfig) -> dict[str, Any]:
    """Set the flags of a configuration and of those inside it to what transformers starts from; returns what stood."""
    before = {name: getattr(config, name) for name, off in _OFF.items() if getattr(config, name, off) != off}
    for name in before:
        setattr(config, name, _OFF[name])
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            ask_for_no_more(inner)
    return before


def configurations(model: nn.Module) -> list[PreTrainedConfig]:
    """Every configuration that a part of ``model`` reads, each once."""
    found = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    return list(found.values())


@contextmanager
def asked_for_no_more(model: PreTrainedModel) -> Iterator[None]:
    """As :func:`ask_for_no_more` for a while, for a model that is somebody else's."""
    before = [(config, ask_for_no_more(config)) for config in configurations(model)]
    try:
        yield
    finally:
        for config, flags in before:
            for name, value in flags.items():
                setattr(config, name, value)
