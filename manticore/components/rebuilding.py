"""Builds a model anew around copies of another's tensors, taken over by their names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from manticore.errors import ManticoreError

M = TypeVar("M", bound=PreTrainedModel)

NO_DECAY = "_no_weight_decay"
"""Attribute of a parameter or module that weight decay shall not fall on, as mamba-ssm writes it."""


def copied(model: M) -> M:
    """A deep copy that keeps the marks of parameters, which copying alone loses."""
    twin = copy.deepcopy(model)
    for own, theirs in zip(twin.parameters(), model.parameters()):
        if hasattr(theirs, NO_DECAY):
            setattr(own, NO_DECAY, getattr(theirs, NO_DECAY))
    return twin


def named_tensors(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers by name, ``prefix`` before each; shared ones under each of their names."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {prefix + name: tensor for name, tensor in tensors.items()}


def rebuilt(
    make: Callable[[], M], given: Mapping[str, Tensor], *, device: torch.device, stage: str, fresh: str | None = None
) -> M:
    """The model that ``make`` builds, with copies of the ``given`` tensors in their own precisions.

    Args:
        make: builds the model; no weights are initialised meanwhile.
        given: name → tensor; what the model does not hold is left out.
        device: where the model goes.
        stage: what errors begin with.
        fresh: parameters whose names begin so are not taken over; the caller initialises them.

    Raises:
        ManticoreError: the model has a weight that was not given.
    """
    with no_init_weights():
        model = make()
    # not through the state dict: it lacks the tables that families derive (rotary frequencies), and each tensor has to
    # keep its own precision
    nn.Module.to(model, device=device)
    for name, tensor in named_tensors(model).items():
        if fresh is not None and name.startswith(fresh):
            continue
        if name in given:
            tensor.data = given[name].detach().clone()
        elif isinstance(tensor, nn.Parameter):
            raise ManticoreError(f"{stage}: the model has no weight {name}. Fix: merge adapters into their model first")
    # building without initialisation leaves embeddings and head apart in families that share them
    model.tie_weights()
    return model
