"""What a family's model has around its layers: which of its modules come before them, which behind."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from manticore.components.runner import Runner
from manticore.components.stunted import FAR, stunted


def surroundings(model: PreTrainedModel) -> tuple[set[str], set[str]]:
    """Names of the modules that a family's forward calls before its first layer, and of those behind its last.

    Watched on a small random model of the same class. What is called on both sides, among the layers, or not at all is
    in neither.
    """
    small = stunted(model, switch=FAR, seed=0)
    layers = Runner(small, []).layers
    called: dict[str, set[str]] = {}
    place = "before"

    def arrive(where: str) -> Any:
        def hook(*_: Any) -> None:
            nonlocal place
            place = where

        return hook

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            called.setdefault(name, set()).add(place)

        return hook

    inside = {id(module) for module in layers.modules()}
    for name, module in small.named_modules():
        if id(module) not in inside and not any(part is layers for part in module.modules()):
            module.register_forward_pre_hook(note(name))
    layers[0].register_forward_pre_hook(arrive("among"))
    layers[-1].register_forward_hook(arrive("behind"))
    with torch.no_grad():
        small(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    before, behind = ({name for name, places in called.items() if places == {side}} for side in ("before", "behind"))
    return before, behind
