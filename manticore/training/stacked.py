"""Several copies of one model that train side by side on the same batches: the runs of a grid in one pass.

Parameters are stacked along a first dimension, the forward pass is mapped over it, and AdamW keeps one learning rate
and one weight decay per copy (Loshchilov and Hutter 2019, as torch.optim.AdamW computes it, one group for everything):

    p <- p (1 - lr wd);  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Each copy sees only its own gradients, so it ends where it would have ended alone, within floating-point noise. One copy
is not mapped, so any model can be one.
Shapes: G copies, B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from manticore.errors import in_brief
from manticore.tasks.metrics import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CANNOT_BE_MAPPED = (RuntimeError, NotImplementedError, TypeError, ValueError)
"""What operators without a rule for stacked inputs raise, and models that look at values."""


class StackedModel:
    """`copies` copies of `model`; what of it ``requires_grad`` is stacked, the rest is shared.

    Args:
        model: any model that answers to ``input_ids`` with ``logits``; its own parameters are not changed.
        copies: G.
    """

    def __init__(self, model: PreTrainedModel, copies: int) -> None:
        self.model = model
        self.copies = copies
        self.parameters: dict[str, Tensor] = {
            name: parameter.detach().expand(copies, *parameter.shape).clone().requires_grad_()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def logits(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` → ``[G, B, T, V]``."""

        def forward(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(self.model, parameters, (), {"input_ids": input_ids, "use_cache": False}).logits

        if self.copies == 1:
            return forward({name: stacked[0] for name, stacked in self.parameters.items()})[None]
        return vmap(forward, randomness="different")(self.parameters)

    def loss(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over the positions that have a target, one per copy: ``[B, T]`` each → ``[G]``."""
        scored = targets != IGNORE
        logits = self.logits(input_ids)[:, scored].float()
        wanted = targets[scored].expand(self.copies, -1)
        losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return losses.view(self.copies, -1).mean(1)

    def keep(self, copies: Sequence[int]) -> None:
        """Go on with these copies only."""
        self.copies = len(copies)
        self.parameters = {
            name: stacked.detach()[list(copies)].requires_grad_() for name, stacked in self.parameters.items()
        }


class StackedAdamW:
    """AdamW with a learning rate and a weight decay per copy.

    Args:
        model: whose parameters are changed in place.
        weight_decays: one per copy.
        betas: decay of the two moments.
        eps: added to the root of the second.
    """

    def __init__(
        self, model: StackedModel, weight_decays: Sequence[float], *, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        self._model = model
        self._weight_decays = list(weight_decays)
        self._betas, self._eps = betas, eps
        self._steps = 0
        self._first = {name: torch.zeros_like(p, requires_grad=False) for name, p in model.parameters.items()}
        self._second = {name: torch.zeros_like(p, requires_grad=False) for name, p in model.parameters.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], lrs: Sequence[float]) -> None:
        """One step with one learning rate per copy."""
        self._steps += 1
        b1, b2 = self._betas
        bias1, bias2 = 1 - b1**self._steps, 1 - b2**self._steps
        for name, parameter in self._model.parameters.items():
            shape = (-1, *[1] * (parameter.dim() - 1))
            kept = parameter.new_tensor([1 - lr * wd for lr, wd in zip(lrs, self._weight_decays)]).view(shape)
            rate = parameter.new_tensor([lr / bias1 for lr in lrs]).view(shape)
            gradient, first, second = gradients[name], self._first[name], self._second[name]
            first.lerp_(gradient, 1 - b1)
            second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            denominator = second.sqrt().div_(bias2**0.5).add_(self._eps)
            parameter.mul_(kept).sub_(first / denominator * rate)

    def keep(self, copies: Sequence[int]) -> None:
        """Go on with these copies only; call it together with the model's own."""
        chosen = list(copies)
        self._weight_decays = [self._weight_decays[copy] for copy in chosen]
        for moments in (self._first, self._second):
            for name, stacked in moments.items():
                moments[name] = stacked[chosen]


def why_not_stacked(model: PreTrainedModel, input_ids: Tensor) -> str | None:
    """Why `model` cannot run as several copies at once; None if it can, forward and backward, with the same result.

    Args:
        model: any causal LM.
        input_ids: ``[B, T]``, a small batch of the kind that it will see.
    """
    try:
        stacked = StackedModel(model, 2)
        logits = stacked.logits(input_ids)
        torch.autograd.grad(logits.sum(), list(stacked.parameters.values()), allow_unused=True)
    except _CANNOT_BE_MAPPED as error:
        return in_brief(error, 160)
    with torch.no_grad():
        alone = model(input_ids=input_ids, use_cache=False).logits
    worst = (logits - alone).abs().max().item() / max(alone.abs().max().item(), 1e-9)
    # not a bound on quality: a model that mixes copies up is wrong by orders of magnitude more
    return None if worst < 1e-3 else f"copies differ from the model alone by {worst:.2g}"
