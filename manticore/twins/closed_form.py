"""Where the fit of a twin begins: the output map of each mixer, by ridge regression on what the mixer reads.

What a fresh recurrence hands to its output map has neither the scale nor the directions of what attention handed to it;
started with the parent's map alone, mixers behind a norm are off by tens of times what attention gives. But the output
is linear in that map: with n_t what it reads and y_t what attention gives,

    W = argmin sum_t |W n_t - y_t|^2 + r |W - P|^2,    r = RIDGE * mean_i sum_t n_ti^2,

P the parent's map, and sums over calibration tokens suffice. The scale goes into the norm before it, so that the map
keeps the size of the parent's, to which learning rates are fit. A layer that held-out text speaks against keeps what it
had.

Shapes: B batch, T tokens, D width, I what the output map reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manticore.twins.mixers import TwinMixer

TOKENS = 16_384
"""So many of the calibration tokens are read for it, at most: some thirty for each channel of a map of 576."""
RIDGE = 1e-3


class OutputFit:
    """Sums that the output map of a mixer follows from.

    Args:
        mixer: as it starts; a hook on its output map sees what that reads.
    """

    def __init__(self, mixer: TwinMixer) -> None:
        self.mixer = mixer
        self._read: Tensor | None = None
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None
        self._length = 0.0
        self._before: dict[str, Tensor] = {}
        self._handle = mixer.o_proj.register_forward_pre_hook(self._look)

    def _look(self, _map: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._read = args[0].detach()

    @torch.no_grad()
    def add(self, wanted: Tensor, real: Tensor | None) -> None:
        """Count tokens that the mixer has just read.

        Args:
            wanted: what attention gives, ``[B, T, D]``.
            real: 0 on padding, ``[B, T, 1]``; None where there is none.
        """
        assert self._read is not None
        rows, targets = self._read.flatten(0, 1).double(), wanted.flatten(0, 1).double()
        if self.mixer.o_proj.bias is not None:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        if real is not None:
            rows, targets = rows * real.flatten(0, 1), targets * real.flatten(0, 1)
        gram, cross = rows.T @ rows, rows.T @ targets
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross
        self._length += float(targets.square().sum())

    @torch.no_grad()
    def set(self) -> None:
        """Give the mixer the scale and the map that follow, and look no further."""
        self._handle.remove()
        gram, cross, out = self._gram, self._cross, self.mixer.o_proj
        if gram is None or cross is None or not self._length:
            return
        norm = getattr(self.mixer, "norm", None)
        self._before = {name: value.clone() for name, value in self._changed().items()}
        width = out.in_features
        if norm is not None:
            given = out.weight.double()
            scale = (self._length / float((given @ gram[:width, :width] * given).sum())) ** 0.5
            norm.weight.mul_(scale)
            gram[:width] *= scale
            gram[:, :width] *= scale
            cross[:width] *= scale
        strength = RIDGE * gram[:width, :width].diagonal().mean()
        penalty = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * strength
        # the intercept is free, but for what keeps the system solvable
        penalty[width:] *= 1e-6
        cross[:width] += strength * out.weight.double().T
        solved = torch.linalg.solve(gram + penalty, cross).T
        out.weight.copy_(solved[:, :width])
        if out.bias is not None:
            out.bias.copy_(solved[:, width])

    @torch.no_grad()
    def withdraw(self) -> None:
        """Take back what :meth:`set` has changed."""
        for name, value in self._changed().items():
            value.copy_(self._before[name])

    def _changed(self) -> dict[str, Tensor]:
        modules = {"o_proj": self.mixer.o_proj, "norm": getattr(self.mixer, "norm", None)}
        return {
            f"{name}.{own}": value
            for name, module in modules.items()
            if module is not None
            for own, value in module.named_parameters()
        }
