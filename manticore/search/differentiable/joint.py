"""One optimizer object that holds two: the network's and the mixture weights'.

``Trainer`` and accelerate know a single optimizer; this one gives both their own learning rates (parameter
groups: the network's first) and saves and restores both. Which of the two a step moves is the order:

    simultaneous   every step moves both, on one batch
    alternating    odd steps move the network, even steps the mixture weights, on the same training data
    bilevel        as alternating, but even steps read a half of the training data the network never sees
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch

from manticore.errors import ManticoreError
from manticore.registry import did_you_mean
from manticore.search.differentiable.methods import SearchMethod


class Order(str, Enum):
    """Which parameters a step of the search moves."""

    SIMULTANEOUS = "simultaneous"
    ALTERNATING = "alternating"
    BILEVEL = "bilevel"

    @classmethod
    def parse(cls, name: str) -> Order:
        """The order called ``name``.

        Raises:
            ManticoreError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            choices = [order.value for order in cls]
            raise ManticoreError(f"search: unknown order {name!r}{did_you_mean(str(name), choices)}") from None


class JointOptimizer(torch.optim.Optimizer):
    """The network's optimizer and the method that moves the mixture weights, taking turns as ``order`` says.

    Args:
        network: optimizer of the network's weights.
        mixture: optimizer of the mixture weights.
        order: who moves at which step.
    """

    def __init__(self, network: torch.optim.Optimizer, mixture: SearchMethod, order: Order) -> None:
        # the base class is not initialised: it would build groups and state of its own
        self.network = network
        self.mixture = mixture
        self.order = order
        self.steps_taken = 0
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of both, the network's first."""
        return self.network.param_groups + self.mixture.param_groups

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """The state of both."""
        return {**self.network.state, **self.mixture.state}

    def begin_step(self) -> None:
        """To be called once before the forward passes of a step."""
        self.mixture.begin_step()

    def settle(self) -> None:
        """Leaves noise-free mixture weights in the model, learning nothing."""
        self.mixture.settle()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Moves those whose turn it is, and leaves noise-free mixture weights in the model."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        network_turn = self.steps_taken % 2 == 0
        both = self.order is Order.SIMULTANEOUS
        if both or not network_turn:
            self.mixture.step()
        else:
            self.mixture.settle()
        if both or network_turn:
            self.network.step()
        self.steps_taken += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of both."""
        self.network.zero_grad(set_to_none=set_to_none)
        self.mixture.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Both states and the number of steps taken."""
        return {
            "network": self.network.state_dict(),
            "mixture": self.mixture.state_dict(),
            "steps_taken": self.steps_taken,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Restores both."""
        self.network.load_state_dict(state_dict["network"])
        self.mixture.load_state_dict(state_dict["mixture"])
        self.steps_taken = state_dict["steps_taken"]
