"""Modes of a model that hold for a while and are put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Whatever modes are set inside, each module has its own again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def recomputed_activations(model: PreTrainedModel) -> Iterator[None]:
    """Activations are recomputed in the backward pass inside: less memory, a third more FLOPs."""
    # versions of transformers before 5.20 know these by their old names only
    new = hasattr(model, "activation_checkpointing_enable")
    enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
    disable = model.activation_checkpointing_disable if new else model.gradient_checkpointing_disable
    hooked = hasattr(model, "_require_grads_hook")
    enable({"use_reentrant": False})
    if not hooked and hasattr(model, "_require_grads_hook"):
        # only reentrant recomputation needs inputs with gradients; here these would make every frozen layer below the
        # first trained one compute one for nothing
        model.disable_input_require_grads()
    try:
        yield
    finally:
        disable()
