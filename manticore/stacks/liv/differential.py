"""The differential form of an operator: LIV_a(x) - LIV_b(x), two of its kind with weights of their own.

One place in the cache holds what both remember, side by side along heads or channels.

Shapes: B batch, H heads, C channels, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from manticore.stacks.mixer import Memory, Mixer, Step


class Differential(Mixer):
    """The difference of two operators of one kind.

    Args:
        first: added.
        second: subtracted.
    """

    def __init__(self, first: Mixer, second: Mixer) -> None:
        super().__init__()
        self.a, self.b = first, second
        self.cache_type, self.fixed_state, self.window = first.cache_type, first.fixed_state, first.window
        self.family = f"a difference: {first.family}"
        self.feature_groups = first.feature_groups
        self.hands_on = tuple(f"{half}.{name}" for half in "ab" for name in first.hands_on)

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        parts, waiting = [], {}  # type: ignore[var-annotated]
        for half, mixer in (("a", self.a), ("b", self.b)):
            memory = None if step.memory is None else _Half(step.memory, waiting, second=half == "b")
            taken = {name[2:]: each for name, each in step.taken.items() if name.startswith(f"{half}.")}
            own = None if step.handed is None else {}  # type: ignore[var-annotated]
            parts.append(mixer(hidden, replace(step, memory=memory, taken=taken, handed=own)))
            step.hand_on(**{f"{half}.{name}": each for name, each in (own or {}).items()})
        return parts[0] - parts[1]

    def take(self, features: tuple[str, ...], *, whole: bool = False) -> None:
        for mixer in (self.a, self.b):
            mixer.take(features, whole=whole)
        self.taken = self.a.taken

    def mismatch(self, source: Mixer) -> str | None:
        return self.a.mismatch(source.a) if isinstance(source, Differential) else super().mismatch(source)

    @property
    def cache_slot(self) -> str:
        return self.a.cache_slot

    @property
    def mask_type(self) -> str | None:
        return self.a.mask_type

    def state_size(self, tokens: int) -> int:
        return self.a.state_size(tokens) + self.b.state_size(tokens)

    def option_for_state(self, elements: int) -> tuple[str, int]:
        return self.a.option_for_state(elements // 2)

    def flops(self, tokens: int) -> int:
        return self.a.flops(tokens) + self.b.flops(tokens)


class _Half(Memory):
    """What one of two operators remembers in the place of both.

    The first reads its share of what is held and waits with what is new; the second writes both.
    """

    def __init__(self, memory: Memory, waiting: dict[str, Any], *, second: bool) -> None:
        super().__init__(memory._cache, memory._layer_idx)
        self._waiting, self._second = waiting, second

    @property
    def _slot(self) -> Any:
        return self._cache.layers[self._layer_idx]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        heads = keys.shape[1]
        if self._second:
            first_keys, first_values = self._waiting.pop("extend")
            held = super().extend(torch.cat([first_keys, keys], 1), torch.cat([first_values, values], 1))
            return held[0][:, heads:], held[1][:, heads:]
        self._waiting["extend"] = keys, values
        slot = self._slot
        if slot.keys is None or slot.get_seq_length() == 0:
            return keys, values
        return torch.cat([slot.keys[:, :heads], keys], 2), torch.cat([slot.values[:, :heads], values], 2)

    def window(self, inputs: Tensor, width: int) -> Tensor:
        channels = inputs.shape[1]
        if self._second:
            return super().window(torch.cat([self._waiting.pop("window"), inputs], 1), width)[:, channels:]
        self._waiting["window"] = inputs
        held = self._slot.conv_states[0]
        before = inputs.new_zeros(*inputs.shape[:2], width) if held is None else held[:, :channels]
        return torch.cat([before, inputs], -1)

    @property
    def state(self) -> Tensor | None:
        held = super().state
        return None if held is None else held.chunk(2, 1)[self._second]

    @state.setter
    def state(self, value: Tensor) -> None:
        if self._second:
            self._cache.update_recurrent_state(torch.cat([self._waiting.pop("state"), value], 1), self._layer_idx)
        else:
            self._waiting["state"] = value
