"""What every primitive of a stack is: a map of hidden states with a memory, a state size and a count of FLOPs.

A primitive takes ``[B, T, D]`` and gives ``[B, T, D]``; the layer around it adds norm and residual. Without a memory
it runs whole sequences; with one it continues what the memory holds, by any number of tokens.

Shapes: B batch, T tokens, D width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from manticore.errors import ManticoreError


class Memory:
    """The slot of one layer in a cache of transformers."""

    def __init__(self, cache: Cache, layer_idx: int) -> None:
        self._cache = cache
        self._layer_idx = layer_idx

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, T, K]`` and ``[B, H, T, V]``; returns all that is held."""
        return self._cache.update(keys, values, self._layer_idx)

    def window(self, inputs: Tensor, width: int) -> Tensor:
        """``inputs`` ``[B, C, T]`` behind the ``width`` inputs before them (zeros at first): ``[B, C, width + T]``."""
        held: Tensor = self._cache.update_conv_state(inputs, self._layer_idx, conv_kernel_size=width)
        # at the start of a sequence the cache gives the inputs back as they are
        return F.pad(held, (width + inputs.shape[-1] - held.shape[-1], 0))

    @property
    def state(self) -> Tensor | None:
        """The recurrent state, or None at the start."""
        return self._cache.layers[self._layer_idx].recurrent_states[0]  # type: ignore[union-attr]

    @state.setter
    def state(self, value: Tensor) -> None:
        self._cache.update_recurrent_state(value, self._layer_idx)


@dataclass(frozen=True)
class Step:
    """What a primitive needs to know about the tokens it is given."""

    padding: Tensor | None = None
    """``[B, T, 1]``, 0 on padding and 1 elsewhere; None without padding."""
    mask: Tensor | None = None
    """What attention may look at, in the form that the attention implementation takes."""
    positions: Tensor | None = None
    """``[B or 1, T]``; only attention asks for them."""
    attention: str = "eager"
    """Attention implementation of transformers."""
    memory: Memory | None = None
    """None outside cached decoding."""
    taken: Mapping[str, Tensor | None] = field(default_factory=dict)
    """Features that a lower layer has computed and this one takes, by their names."""
    handed: dict[str, Tensor | None] | None = None
    """Where the features go that an upper layer takes; None where none does."""

    def hand_on(self, **features: Tensor | None) -> None:
        """Let upper layers take these features."""
        if self.handed is not None:
            self.handed.update(features)

    def silence(self, x: Tensor) -> Tensor:
        """``[B, T, C]`` with zeros on padding, so that nothing of it reaches a state."""
        return x if self.padding is None else x * self.padding.to(x.dtype)

    def window(self, x: Tensor, width: int) -> Tensor:
        """``[B, C, T]`` → ``[B, C, width + T]``: the inputs before these in front, zeros at the start of a sequence."""
        return F.pad(x, (width, 0)) if self.memory is None else self.memory.window(x, width)

    @property
    def state(self) -> Tensor | None:
        """The recurrent state to start from."""
        return None if self.memory is None else self.memory.state

    def keep(self, state: Tensor) -> None:
        """Hand the recurrent state to the memory, if there is one."""
        if self.memory is not None:
            self.memory.state = state


class Mixer(nn.Module):
    """A primitive of a stack."""

    cache_type: str = "moe"
    """What transformers' cache holds for it. The name of layers that need none is ``"moe"`` there."""
    fixed_state: bool = False
    """Whether its state has a size that does not grow with the sequence."""
    window: int | None = None
    """How many earlier tokens attention sees; None is all of them."""
    family: str = ""
    """Class of operators within which features can be taken over; empty where they cannot."""
    feature_groups: tuple[tuple[str, ...], ...] = ()
    """The sets of features that can be taken from a lower layer, from the smallest to all but the readout's."""
    hands_on: tuple[str, ...] = ()
    """What :meth:`Step.hand_on` is given, in order: the features, and what they need of the past."""
    taking_adds_weights: bool = False
    """Whether a layer that takes features has weights for that, instead of lacking those that would compute them."""
    taken: tuple[str, ...] = ()
    """Features that are taken from a lower layer, and have no weights here."""

    def take(self, features: tuple[str, ...], *, whole: bool = False) -> None:
        """Take features from a lower layer: what would compute them is left out.

        Args:
            features: their names.
            whole: keep the weights that are not needed, since they are another layer's too.

        Raises:
            ManticoreError: they are none of :attr:`feature_groups`.
        """
        group = next((group for group in self.feature_groups if sorted(group) == sorted(features)), None)
        if group is None:
            known = " or ".join(str(list(group)) for group in self.feature_groups)
            fix = f"expected {known}" if known else "it has none that can be shared"
            raise ManticoreError(f"features is {list(features)} ({fix}). Fix: another list, or no features_of")
        self.taken = group
        if not whole:
            self._leave_out()

    def _leave_out(self) -> None:
        """Drop the weights that :attr:`taken` makes useless."""

    def mismatch(self, source: Mixer) -> str | None:
        """Why features of ``source`` do not fit here, in a few words; None where they do."""
        if self.family == source.family:
            return None
        return f"it is {source.family or 'nothing that shares'} (expected {self.family})"

    @property
    def cache_slot(self) -> str:
        """What transformers' cache holds for it in its place; nothing where a lower layer holds it already."""
        return "moe" if self.taken and self.taken == self.feature_groups[-1] else self.cache_type

    @property
    def mask_type(self) -> str | None:
        """The kind of attention whose mask it needs; None where it needs none."""
        return self.cache_type if self.cache_type in ("full_attention", "sliding_attention") else None

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        """``[B, T, D]`` → ``[B, T, D]``."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def state_size(self, tokens: int) -> int:
        """Numbers held per sequence after ``tokens`` tokens; the short convolutions' are not counted."""
        return 0

    def flops(self, tokens: int) -> int:
        """FLOPs of one forward pass over one sequence of ``tokens`` tokens.

        A multiply-add is 2. Matrix products, convolutions, transforms and scans count, element-wise work does not; so
        this is what :func:`manticore.flops.counted_flops` counts.
        """
        raise TypeError(f"{type(self).__name__} has no formula for its FLOPs")

    def option_for_state(self, elements: int) -> tuple[str, int]:
        """The option, and its value, that gives a fixed state of about ``elements`` numbers.

        Raises:
            ManticoreError: the state is not fixed.
        """
        raise ManticoreError("its state has no fixed size. Fix: leave it out of the normalisation")

    def reset_extra_parameters(self) -> None:
        """Initialise what no module of torch initialises, and what needs another start than torch gives it.

        Uses ``transformers.initialization``, which leaves loaded weights alone.
        """


class MatrixState(Mixer):
    """A layer that keeps a matrix ``[K, K]`` per head."""

    fixed_state = True
    num_heads: int
    head_dim: int

    def state_size(self, tokens: int) -> int:
        return self.num_heads * self.head_dim**2

    def option_for_state(self, elements: int) -> tuple[str, int]:
        return "num_heads", (self.num_heads * self.head_dim) ** 2 // elements


def head_width(width: int, num_heads: int, what: str = "heads") -> int:
    """Channels of one head.

    Raises:
        ManticoreError: the heads do not divide the width.
    """
    if width % num_heads:
        raise ManticoreError(
            f"{num_heads} {what} do not divide width {width}. Fix: a width that is a multiple of {num_heads}, "
            f"or another number of {what}"
        )
    return width // num_heads


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, T, H * K]`` → ``[B, H, T, K]``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, H, T, K]`` → ``[B, T, H * K]``."""
    return x.transpose(1, 2).flatten(2)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Recurrences, transforms and decays run in float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def linear_flops(layers: Any, tokens: int) -> int:
    """FLOPs of applying each ``nn.Linear`` or depthwise convolution of ``layers`` once to every token."""
    return sum(2 * tokens * layer.weight.numel() for layer in layers)
