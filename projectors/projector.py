"""What every projector is: a learned map from the features of one component to those of another.

Shape letters: d_in and d_out are the widths D of the source and the target component; ``...`` is any number
of leading dimensions, usually ``[B, T]``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization

Init = Literal["identity", "zero", "default"]

_IDENTITY = 1e-9
"""Less than any step of training in half precision moves a number of the size of 1; more than float64 rounds off."""


@dataclass(frozen=True)
class InputMoments:
    """Mean and covariance of the features that a projector will see."""

    mean: Tensor
    """``[d_in]``"""
    covariance: Tensor
    """``[d_in, d_in]``"""


class Projector(nn.Module, ABC):
    """A map of features ``[..., d_in]`` to ``[..., d_out]``.

    The map is computed in the dtype of the parameters and returned in the dtype of its input, so that a
    component which keeps its features in float32 is not rounded by projectors in bfloat16.

    Parameters are held directly rather than in ``nn.Linear`` children: a model's own initialisation,
    quantisation and LoRA rules go by layer type and must not reach into a projector.

    Args:
        d_in: width of the source features.
        d_out: width of the target features.
        init: ``"identity"`` (pads or cuts), ``"zero"`` (the learned part is zero) or ``"default"``
            (uniform in ±1/sqrt(fan-in), what torch gives its linear layers).
    """

    def __init__(self, d_in: int, d_out: int, init: Init = "identity") -> None:
        super().__init__()
        self.d_in, self.d_out, self.init = d_in, d_out, init

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map features ``[..., d_in]`` to ``[..., d_out]``."""

    @abstractmethod
    def initial_values(self, init: Init) -> dict[str, Tensor]:
        """Fresh values of all parameters by name, for one of ``Init``."""

    @abstractmethod
    def set_affine(self, weight: Tensor, bias: Tensor, moments: InputMoments | None = None) -> tuple[Tensor, Tensor]:
        """Make this projector represent ``x -> x @ weight.T + bias`` as well as its kind can.

        Args:
            weight: ``[d_out, d_in]``
            bias: ``[d_out]``
            moments: the distribution of the inputs. A kind that cannot hold the whole map then keeps what
                matters for these inputs (least mean squared error) instead of the largest singular values.

        Returns:
            weight and bias, in float64, of the map that is represented (not yet rounded to the
            parameters' dtype).
        """

    def reset_parameters(self) -> None:
        """Initialise as configured. Leaves alone what transformers has just loaded from a checkpoint."""
        for name, value in self.initial_values(self.init).items():
            initialization.copy_(getattr(self, name), value)

    def reset_identity(self) -> None:
        """Become the map that pads with zeros or cuts, whatever was there before."""
        self._write(self.initial_values("identity"))

    @torch.no_grad()
    def is_identity(self) -> bool:
        """Whether it hands every feature on as it is, by the numbers that it holds."""
        if self.d_in != self.d_out:
            return False
        # in float64 nothing is lost by taking the identity apart and putting it together again, as two layers do
        exact = copy.deepcopy(self).cpu().double()
        drawn = torch.randn(8, self.d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        basis = torch.eye(self.d_in, dtype=torch.float64)
        probes = torch.cat([torch.zeros_like(drawn[:1]), basis, -3 * basis, drawn])
        return bool((exact(probes) - probes).abs().max() < _IDENTITY)

    def extra_repr(self) -> str:
        return f"{self.d_in} -> {self.d_out}, init={self.init}"

    def _write(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                getattr(self, name).copy_(value)


def resize(x: Tensor, d_out: int) -> Tensor:
    """Pad the last dimension with zeros or cut it: ``[..., D]`` to ``[..., d_out]``."""
    d_in = x.shape[-1]
    if d_in == d_out:
        return x
    return F.pad(x, (0, d_out - d_in)) if d_in < d_out else x[..., :d_out]
