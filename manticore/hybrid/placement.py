"""Hybrids that accelerate has spread over devices and disk (``device_map``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manticore.hybrid.mixing import Mixing


def hold_mixture(mixing: Mixing) -> None:
    """Take mixture weights that a device map has left on disk into memory.

    accelerate fetches a module's parameters when the module is called. A mixing is never called itself, its
    projectors are; and its own parameters are a handful of numbers.
    """
    absent = [name for name, parameter in mixing.named_parameters(recurse=False) if parameter.is_meta]
    if not absent:
        return
    from accelerate.hooks import remove_hook_from_module

    hook: Any = mixing._hf_hook
    stored = hook.weights_map
    values = {name: stored[name] for name in absent}
    remove_hook_from_module(mixing)
    for name, value in values.items():
        setattr(mixing, name, nn.Parameter(value.clone(), requires_grad=False))


def forget_addresses(model: nn.Module) -> None:
    """Take from accelerate's hooks the addresses at which tied weights were while the model was placed.

    accelerate (1.15) knows tied weights by their addresses and goes on believing them when the memory is free again. A
    part read from disk later may lie at one of them, and would be given the tied weights in its place. What is tied on
    disk is found anew in every pass.
    """
    for module in model.modules():
        for hook in _hooks(getattr(module, "_hf_hook", None)):
            if (addresses := getattr(hook, "tied_params_map", None)) is not None:
                addresses.clear()


def _hooks(hook: Any) -> Iterator[Any]:
    """The hook, or those of a sequence of hooks."""
    if hook is not None:
        yield hook
        for inner in getattr(hook, "hooks", ()):
            yield from _hooks(inner)
