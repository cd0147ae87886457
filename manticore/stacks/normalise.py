"""Makes stacks comparable: the same total of fixed state, or the same number of parameters.

Iso-state is MAD's rule: architectures of one width and depth get one total of numbers in their fixed states (4,096 at
width 128 and four layers); the growing memory of attention is left out (Poli et al., "Mechanistic Design", 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from manticore.errors import ManticoreError
from manticore.stacks.configuration import StackConfig
from manticore.stacks.sizes import fixed_state, layer_parameters

# the option that widens the hidden layer of a channel mixer
_INNER = {
    "mlp": "inner_width",
    "swiglu": "inner_width",
    "moe-mlp": "expert_width",
    "rwkv5-channel-mixer": "inner_width",
    "rwkv6-channel-mixer": "inner_width",
    "rwkv7-channel-mixer": "inner_width",
}
MAD_STATE = 4096
"""Numbers in all fixed states of a stack of four layers of width 128."""


def iso_state(config: StackConfig, elements: int = MAD_STATE) -> StackConfig:
    """The same stack with options that bring its fixed states to ``elements`` numbers in all, in equal shares.

    The option is the primitive's own: filter order, number of heads or groups, state size, kernel size.

    Args:
        config: the stack.
        elements: the total.

    Raises:
        ManticoreError: no layer has a fixed state, or no value of the option gives the share exactly.
    """
    mixers = config.mixers()
    holders = [index for index, mixer in enumerate(mixers) if mixer.fixed_state and mixer.state_size(1)]
    if not holders:
        raise ManticoreError("iso_state: no layer of this stack has a fixed state. Fix: leave it as it is")
    share, changes = elements // len(holders), {}
    for index in holders:
        option, value = mixers[index].option_for_state(share)
        changes[index] = {option: max(1, value)}
    found = _with_options(config, changes)
    reached = fixed_state(found)
    if reached != elements:
        names = dict.fromkeys(config.layer_names[index] for index in holders)
        raise ManticoreError(
            f"iso_state: {', '.join(names)} cannot share a state of {elements} (nearest is {reached}). "
            f"Fix: elements={reached}, or another width"
        )
    return found


def iso_parameters(config: StackConfig, parameters: int) -> StackConfig:
    """The same stack with hidden layers as wide as it takes to have about ``parameters`` in its layers.

    Channel mixers take the difference; a stack without any (Mamba alone) changes its width, in steps that keep its
    heads whole.

    Args:
        config: the stack.
        parameters: of all layers and their norms, embeddings and head left out, as :func:`layer_parameters` counts.

    Raises:
        ManticoreError: the other layers alone have more.
    """
    inner = {index: _INNER[name] for index, name in enumerate(config.layer_names) if name in _INNER}
    step = 1 if inner else _whole_heads(config)

    def candidate(size: int) -> StackConfig:
        if inner:
            return _with_options(config, {index: {option: size} for index, option in inner.items()})
        return changed(config, hidden_size=size * step)

    best = _nearest(lambda size: layer_parameters(candidate(size)), parameters)
    found = candidate(best)
    if best == 1 and layer_parameters(found) > parameters:
        raise ManticoreError(
            f"iso_parameters: its other layers alone have more than {parameters} parameters "
            f"(at least {layer_parameters(found)}). Fix: a larger number, or a smaller width"
        )
    return found


def _nearest(count: Callable[[int], int], wanted: int) -> int:
    """The size, 1 or more, whose count is nearest; counts grow with sizes."""
    high = 1
    while count(high) < wanted:
        high *= 2
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    return min((low, high), key=lambda size: abs(count(size) - wanted))


def _whole_heads(config: StackConfig) -> int:
    """The smallest step of the width from which all layers can be built at every multiple."""
    for step in (1, 2, 4, 8, 16, 32, 64, 128):
        try:
            for size in (1, 3):
                changed(config, hidden_size=size * step)
        except ManticoreError:
            continue
        return step
    return config.hidden_size


def _with_options(config: StackConfig, changes: Mapping[int, Mapping[str, Any]]) -> StackConfig:
    entries = config.entries

    def own(index: int) -> Mapping[str, Any]:
        # what shares weights or features has to go on fitting what it shares them with
        entry = entries[index]
        below = entry.features_of if entry.weights_of is None else entry.weights_of
        if index in changes or below is None or entries[below].name != entry.name:
            return changes.get(index, {})
        return own(below)

    layers = [entry.with_options({**entry.options, **own(index)}).written for index, entry in enumerate(entries)]
    return changed(config, layers=layers)


def changed(config: StackConfig, **settings: Any) -> StackConfig:
    """The same stack with other settings."""
    return StackConfig.from_dict({**config.to_dict(), **settings})
