"""The three ways to move mixture weights: Darts, Dash and Gaea.

Each is a ``torch.optim.Optimizer`` over probabilities ``p`` of shape ``[..., K]`` whose last dimension lies
on the simplex: ``[N, K]``, ``[N, K, K]`` or ``[K]`` (N blocks, K components). The model only ever reads
``p``; ``dLoss/dp`` arrives in ``p.grad``, and a step maps it to the method's own state and writes new
probabilities.

    Darts   p = softmax(alpha)               alpha <- AdamW(alpha, J' dLoss/dp),     J = diag(p) - p p'
    Dash    s = softmax((alpha + g) / tau)   alpha <- AdamW(alpha, J' dLoss/ds / tau), one Gumbel g a step
    Gaea    p <- normalise(floor(p * exp(clip(-lr dLoss/dp, -9, 9))))

A step is ``begin_step(); forward; backward; step()``. Only between ``begin_step`` and ``step`` may the model
hold a random sample; at every other moment (evaluation, checkpoints, the end of the search) it holds the
noise-free weights. ``settle`` restores those without learning, for steps that train only the network.

A start at a vertex (a routed mixing starts at R = I) has logits of minus infinity, and its gradient through
the softmax vanishes. So every start is lifted to at least ``start_floor`` and renormalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn

from manticore.errors import ManticoreError
from manticore.search.differentiable.logits import (
    adamw_on_logits,
    check_floor,
    finite_gradient,
    init_logits,
    lifted,
    mixture_parameters,
)
from manticore.seeding import derive_seed

# the published clip of the exponent
_GAEA_CLIP = 9.0


class SearchMethod(Protocol):
    """What the search trainer needs of a method, beyond ``torch.optim.Optimizer``."""

    param_groups: list[dict[str, Any]]
    state: Any

    def begin_step(self) -> None:
        """Called once before the forward passes of a step; may write a random sample into the model."""

    def step(self, closure: Any = None) -> Any:
        """Learns from the gradients of the probabilities and leaves the noise-free weights in the model."""

    def settle(self) -> None:
        """Leaves the noise-free weights in the model, learning nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue as if never stopped."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state and the weights that belong to it."""


class Darts(torch.optim.Optimizer):
    """Gradient descent on logits: ``p = softmax(alpha)``, AdamW on ``alpha``.

    Args:
        parameters: probabilities ``[..., K]``.
        lr: learning rate of the logits.
        betas: Adam's decay rates of the first and second moment.
        eps: Adam's epsilon.
        weight_decay: decoupled decay of the logits; it pulls towards equal weights.
        start_floor: smallest probability of the start, in (0, 1 / K).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        start_floor: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        init_logits(self, start_floor)
        self.settle()

    def begin_step(self) -> None:
        """Nothing to draw."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One AdamW step on the logits; new probabilities are written."""
        loss = _run(closure)
        adamw_on_logits(self, temperature=1.0)
        self.settle()
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Writes ``softmax(alpha)``."""
        for parameter in mixture_parameters(self):
            parameter.copy_(self.state[parameter]["alpha"].softmax(-1))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores logits and moments, and writes the weights that belong to them."""
        super().load_state_dict(state_dict)
        self.settle()


class Dash(torch.optim.Optimizer):
    """One Gumbel-softmax sample per step, shared by every reader; AdamW on the logits behind it.

    The noise is a function of ``(seed, step)`` alone: the same on every rank, and the same after resuming.

    Args:
        parameters: probabilities ``[..., K]``.
        lr: learning rate of the logits.
        seed: seed of the noise.
        temperature: temperature of the first step.
        final_temperature: temperature reached after ``anneal_steps``, on a geometric path, and kept.
        anneal_steps: steps over which the temperature falls.
        betas: Adam's decay rates of the first and second moment.
        eps: Adam's epsilon.
        weight_decay: decoupled decay of the logits; it pulls towards equal weights.
        start_floor: smallest probability of the start, in (0, 1 / K).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 0.02,
        seed: int = 0,
        temperature: float = 1.0,
        final_temperature: float = 0.5,
        anneal_steps: int = 100,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        start_floor: float = 0.01,
    ) -> None:
        for name, value in (("temperature", temperature), ("final_temperature", final_temperature)):
            if not (math.isfinite(value) and value > 0):
                raise ManticoreError(f"search: {name} must be positive (got {value}). Fix: for instance 1.0")
        if anneal_steps < 1:
            raise ManticoreError(f"search: anneal_steps must be at least 1 (got {anneal_steps}). Fix: anneal_steps=100")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "seed": seed,
            "temperature": temperature,
            "final_temperature": final_temperature,
            "anneal_steps": anneal_steps,
        }
        super().__init__(parameters, defaults)
        init_logits(self, start_floor)
        # in the group, so that the base class saves and restores it
        self.param_groups[0]["samples_drawn"] = 0
        self.settle()

    @property
    def current_temperature(self) -> float:
        """Temperature of the sample drawn last (of the first sample, before there is one)."""
        group = self.param_groups[0]
        done = min(max(group["samples_drawn"] - 1, 0) / group["anneal_steps"], 1.0)
        return group["temperature"] * (group["final_temperature"] / group["temperature"]) ** done

    @torch.no_grad()
    def begin_step(self) -> None:
        """Draws the step's sample and writes it into the model."""
        group = self.param_groups[0]
        noise = torch.Generator().manual_seed(derive_seed(group["seed"], "gumbel", group["samples_drawn"]))
        group["samples_drawn"] += 1
        for parameter in mixture_parameters(self):
            alpha = self.state[parameter]["alpha"]
            # drawn on the CPU: every device and every rank sees the same numbers
            exponential = torch.empty(alpha.shape, dtype=alpha.dtype).exponential_(generator=noise)
            gumbel = -exponential.clamp_min(torch.finfo(alpha.dtype).tiny).log()
            parameter.copy_(((alpha + gumbel.to(alpha.device)) / self.current_temperature).softmax(-1))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One AdamW step on the logits, through the sample in the model; then the noise-free weights."""
        loss = _run(closure)
        adamw_on_logits(self, temperature=self.current_temperature)
        self.settle()
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Writes ``softmax(alpha)``, without noise."""
        for parameter in mixture_parameters(self):
            parameter.copy_(self.state[parameter]["alpha"].softmax(-1))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores logits, moments and the count of samples, and writes the noise-free weights."""
        super().load_state_dict(state_dict)
        self.settle()


class Gaea(torch.optim.Optimizer):
    """Exponentiated gradient: multiplicative steps that never leave the simplex.

    Args:
        parameters: probabilities ``[..., K]``.
        lr: factor of the gradient in the exponent; the exponent is clipped to [-9, 9].
        floor: smallest probability after a step, before the row is normalised once more.
        start_floor: smallest probability of the start, in (0, 1 / K).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 0.5,
        floor: float = 1e-5,
        start_floor: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "floor": floor})
        for parameter in mixture_parameters(self):
            check_floor(floor, parameter, "floor")
            self.state[parameter]["weights"] = lifted(parameter, start_floor)
        self.settle()

    def begin_step(self) -> None:
        """Nothing to draw."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Multiplies by ``exp(-lr * gradient)``, normalises, lifts to the floor, normalises again."""
        loss = _run(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                exponent = (-group["lr"] * finite_gradient(parameter)).clamp(-_GAEA_CLIP, _GAEA_CLIP)
                grown = state["weights"] * exponent.exp()
                floored = (grown / grown.sum(-1, keepdim=True)).clamp_min(group["floor"])
                state["weights"] = floored / floored.sum(-1, keepdim=True)
        self.settle()
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Writes the weights."""
        for parameter in mixture_parameters(self):
            parameter.copy_(self.state[parameter]["weights"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the weights, in the model too."""
        super().load_state_dict(state_dict)
        self.settle()


def _run(closure: Callable[[], Any] | None) -> Any:
    """The loss of the closure that ``Optimizer.step`` may be given."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
