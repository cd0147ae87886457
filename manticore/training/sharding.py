"""Fully sharded training (FSDP2, through accelerate): what is split, what every process keeps whole, how it is saved.

Each decoder layer of each component is a unit of its own; embeddings, heads and projectors belong to the whole model's
unit, which is gathered while the model runs. Mixture weights stay whole everywhere: they are a handful of numbers that
are also read outside a forward pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from manticore.errors import ManticoreError
from manticore.processes import is_first
from manticore.writing import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def asked_to_shard() -> str | None:
    """What the launcher asked for, ``"FSDP"`` or ``"DEEPSPEED"``."""
    names = ("FSDP", "DEEPSPEED")
    return next((name for name in names if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"), None)


def refuse_unsharded(stage: str, sharded: bool) -> None:
    """Refuse what was launched as sharded and would silently be plain data parallelism.

    Raises:
        ManticoreError: the launcher asked for sharding, and accelerate does not shard here.
    """
    asked = asked_to_shard()
    if asked is not None and not sharded:
        raise ManticoreError(
            f"{stage}: {asked} was asked for, but accelerate shards models on accelerators only, in several "
            "processes. Fix: a configuration for data parallelism (manticore cp ddp-cpu)"
        )


def configure(plugin: Any, model: PreTrainedModel, stage: str) -> None:
    """Tell accelerate's FSDP plugin the units of `model` and what is not to be split.

    Raises:
        ManticoreError: settings under which this package's models cannot be sharded.
    """
    if plugin.fsdp_version != 2:
        raise ManticoreError(
            f"{stage}: FSDP version {plugin.fsdp_version} (expected 2). Fix: fsdp_version: 2 (manticore cp fsdp2)"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ManticoreError(
            f"{stage}: fsdp_cpu_ram_efficient_loading hands only parameters from process to process, neither buffers "
            "nor mixture weights. Fix: fsdp_cpu_ram_efficient_loading: false"
        )
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ManticoreError(
            f"{stage}: low-rank updates cannot be merged into sharded weights. "
            "Fix: trainable='projectors' or 'all', or data parallelism (manticore cp ddp-gpu)"
        )
    owned = [parameter for layer in _decoder_layers(model) for parameter in layer.parameters()]
    if len({id(parameter) for parameter in owned}) < len(owned):
        raise ManticoreError(
            f"{stage}: decoder layers share weights, which cannot be split layer by layer. "
            "Fix: data parallelism (manticore cp ddp-gpu)"
        )
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in _decoder_layers(model)})
    mixing = getattr(model, "mixing", None)
    if mixing is not None:
        plugin.ignored_modules = [nn.ParameterList(mixing.mixture_parameters())]


def _decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    runners = getattr(model, "runners", None)
    if runners is None:
        names = getattr(model, "_no_split_modules", None) or ()
        return [module for module in model.modules() if type(module).__name__ in names]
    layers = [layer for runner in runners if runner is not None for layer in runner.layers]
    # what a discretized hybrid has dropped holds no parameters
    return [layer for layer in layers if next(layer.parameters(), None) is not None]


@contextmanager
def whole_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Keeps accelerate from making units of a hybrid's embeddings and of its head.

    It asks a model for both, to keep tied ones together, but a supernet has several of each. The two have to be hidden
    alike: a table that is both cannot belong to a unit of the head and to that of the whole model.
    """
    if not hasattr(model, "runners"):
        yield
        return
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that no gradient has reached yet the state that they begin with.

    A sharded checkpoint is read back with a state for every parameter, or not at all.
    """
    states = [state for state in optimizer.state.values() if state]
    if not states:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and not optimizer.state.get(parameter):
                # a moment has the shape of its parameter; what has none, the count of steps, is one number
                optimizer.state[parameter] = {
                    name: torch.zeros_like(parameter if value.dim() else value, requires_grad=False)
                    for name, value in states[0].items()
                }


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has split the parameters of `model` between processes."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def save_model(model: PreTrainedModel, folder: Path, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """``save_pretrained`` by the first process; to be called by all of them, since a sharded model is gathered.

    Args:
        model: sharded or not.
        folder: where it goes.
        dtypes: name of a weight → the type that it is saved in, where the model is sharded and holds another.
    """
    state: dict[str, Any] | None = None
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        with torch.no_grad():
            whole: dict[str, Any] = get_model_state_dict(
                model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
            )
        state = {name: tensor.to((dtypes or {}).get(name, tensor.dtype)) for name, tensor in whole.items()}
    if is_first():
        model.save_pretrained(folder, state_dict=state)
        saved = None if state is None or not dtypes else dtypes.get(next(iter(dict(model.named_parameters()))))
        if saved is not None and saved != model.dtype:
            # transformers writes the type that the model has in memory
            file = folder / "config.json"
            written = json.loads(file.read_text(encoding="utf-8"))
            write_json(file, written | {"dtype": str(saved).removeprefix("torch.")})
