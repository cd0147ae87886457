"""A small random model of the same configuration as a component, with everything that begins late beginning early.

Sliding windows, chunks of scans, and positions after which a rotary embedding changes lie thousands of tokens away in
real checkpoints. Here a dozen tokens pass them. Depth goes down to the layers that differ in kind, and so do the rows
of the vocabulary and the width of the MLPs, so that a large component costs no more than it has to.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from manticore.components.positions import ROPE_SWITCH, rope_switch

WINDOW = 4
NEAR, FAR = 8, 4096
"""Before and after the end of a dozen tokens."""

_ROWS = 64
_MLP = 64

_WINDOWS = (
    *("sliding_window", "window_size", "local_attention", "attention_window_size", "attention_chunk_size"),
    *("chunk_size", "mamba_chunk_size"),
)
_MLPS = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"),
    *("moe_shared_expert_intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"),
)
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def stunted(model: PreTrainedModel, *, switch: int, seed: int) -> PreTrainedModel:
    """A model of ``model``'s class whose windows are :data:`WINDOW` tokens, in float32 on a CPU, in evaluation mode.

    Args:
        model: not changed.
        switch: after how many positions a rotary embedding changes, where it does.
        seed: of its weights; all of them are random, biases and norms too, so that none hides what it does.

    Raises:
        Exception: whatever the family raises where its configuration does not allow it.
    """
    full = model.config.num_hidden_layers
    # layers that share weights are of one kind only together
    layers = full if len(model.all_tied_weights_keys) > 1 else _layers_of_all_kinds(model)
    for depth, small in ((layers, True), (full, False)):
        try:
            return _random(type(model), _config(model.config, depth, small=small, switch=switch), seed)
        except Exception:
            # families check their settings against each other each in its own way
            if not small:
                raise
    raise AssertionError


def _config(config: PreTrainedConfig, depth: int, *, small: bool, switch: int) -> PreTrainedConfig:
    changed = copy.deepcopy(config)
    changed.dtype = torch.float32
    for name in _WINDOWS:
        _lower(changed, name, WINDOW)
    if rope_switch(config) is not None:
        if hasattr(changed, ROPE_SWITCH):
            setattr(changed, ROPE_SWITCH, switch)
        _move_switch(changed.rope_parameters, switch)
    if not small:
        return changed
    if changed.vocab_size > _ROWS:
        changed.vocab_size = _ROWS
        for name in _IDS:
            if isinstance(getattr(changed, name, None), int):
                _lower(changed, name, 0)
    # there the width of the mixers has that name
    if not any(hasattr(changed, name) for name in ("expand", "time_step_rank")):
        for name in _MLPS:
            _lower(changed, name, _MLP)
    full = config.num_hidden_layers
    if depth < full:
        for name, value in list(vars(changed).items()):
            if isinstance(value, list) and len(value) == full:
                setattr(changed, name, value[:depth])
        changed.num_hidden_layers = depth
    return changed


def _lower(config: PreTrainedConfig, name: str, most: int) -> None:
    value = getattr(config, name, None)
    if isinstance(value, int) and not isinstance(value, bool) and value > most:
        setattr(config, name, most)


def _move_switch(settings: dict[str, Any], switch: int) -> None:
    """Set the switch in the settings of a rotary embedding, or of one per kind of layer."""
    for value in settings.values():
        if isinstance(value, dict):
            _move_switch(value, switch)
    if ROPE_SWITCH in settings:
        settings[ROPE_SWITCH] = switch


def _layers_of_all_kinds(model: PreTrainedModel) -> int:
    """How many of the first layers hold every kind that there is, two at least."""
    depth = model.config.num_hidden_layers
    per_layer = [value for value in vars(model.config).values() if isinstance(value, list) and len(value) == depth]
    layers = next(
        (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), [None] * depth
    )
    kinds: set[str] = set()
    last = 1
    for index, layer in enumerate(layers):
        classes = [type(part).__name__ for part in layer.modules()] if isinstance(layer, nn.Module) else []
        kind = repr((classes, [value[index] for value in per_layer if isinstance(value[index], str | int | float)]))
        if kind not in kinds:
            kinds.add(kind)
            last = max(last, index)
    return min(last + 1, depth)


def _random(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # another precision may be the default while a model is loaded
        model: PreTrainedModel = kind(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() < 2:
                    # biases and norms start as zeros and ones; time steps, drawn from a range, would leave it
                    if bool((parameter == parameter.flatten()[0]).all()):
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
                    continue
                # as the families start them, attention hardly tells one token from another in a narrow model
                wanted = parameter.shape[-1] ** -0.5
                spread = float(parameter.std())
                if 0 < spread < wanted:
                    parameter.mul_(wanted / spread)
    return model
