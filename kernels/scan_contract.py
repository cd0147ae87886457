"""What every path of the selective scan takes and gives: the shapes, in one place.

Shapes: B batch, D channels, L time steps, N state size. States are [B, N, D] inside (channels innermost, because
every path is vectorised over channels); the public function speaks mamba-ssm's [B, D, N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CHUNK = 32
"""Steps between two saved states, for paths on the CPU. The backward pass recomputes the states in between."""


@dataclass(frozen=True)
class Inputs:
    """All tensors on one device, in any strides; of one dtype unless the path takes them as they come."""

    u: Tensor
    """[B, D, L]"""
    delta: Tensor
    """[B, D, L], before bias and softplus"""
    A: Tensor
    """[D, N]"""
    B: Tensor
    """[B, N, L]"""
    C: Tensor
    """[B, N, L]"""
    D: Tensor | None
    """[D]"""
    z: Tensor | None
    """[B, D, L]"""
    delta_bias: Tensor | None
    """[D]"""
    initial_state: Tensor | None
    """[B, N, D]; zeros if None"""
    delta_softplus: bool

    def tensors(self) -> dict[str, Tensor]:
        """Name → tensor, for those that are there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same inputs with ``function`` applied to every tensor that is there."""
        changed = {name: function(value) for name, value in self.tensors().items()}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Inputs(**{**values, **changed})

    @property
    def num_chunks(self) -> int:
        """How many states a forward pass in steps of ``CHUNK`` saves."""
        return -(-self.u.shape[2] // CHUNK)

    def first_state(self) -> Tensor:
        """The state before step 0: [B, N, D]."""
        if self.initial_state is not None:
            return self.initial_state
        batch, channels, _ = self.u.shape
        return self.u.new_zeros(batch, self.A.shape[1], channels)


class Outputs(NamedTuple):
    """What a forward pass gives."""

    out: Tensor
    """[B, D, L]"""
    last_state: Tensor
    """[B, N, D]"""
    states: Tensor
    """What the path's own backward pass wants back; empty if not asked for.

    [B, ceil(L / CHUNK), N, D], the states before each chunk, unless the path says otherwise.
    """


@dataclass(frozen=True)
class Gradients:
    """What a backward pass gives: one tensor for each that is in the inputs, of its shape."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    initial_state: Tensor | None = None


class Path(Protocol):
    """One way to compute the scan: a module with these two functions.

    ``out`` and the gradients of sequences are in the dtype of ``u`` and of those sequences. What the path computes in
    (float32, or float64) is the dtype of ``last_state`` and of ``grad_last_state``.
    """

    def forward(self, inputs: Inputs, save_states: bool) -> Outputs: ...

    def backward(
        self, inputs: Inputs, states: Tensor, grad_out: Tensor, grad_last_state: Tensor | None
    ) -> Gradients: ...


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
