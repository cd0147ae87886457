"""Hybrids that accelerate has spread over devices and disk (``device_map``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
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
