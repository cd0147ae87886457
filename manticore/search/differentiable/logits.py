"""Probabilities, their logits, and one AdamW step on those: what the search methods are made of.

The model holds ``p = softmax((alpha + noise) / tau)``, shape ``[..., K]`` (K components); the gradient of the
logits is the transposed Jacobian of that softmax times the gradient of the probabilities:

    dLoss/dalpha = p * (dLoss/dp - <p, dLoss/dp>) / tau
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from manticore.errors import ManticoreError


def lifted(weights: Tensor, floor: float) -> Tensor:
    """``weights`` ``[..., K]`` moved off the faces of the simplex: at least about ``floor`` each, sums one.

    Raises:
        ManticoreError: the rows are not probabilities, or the floor is not in (0, 1 / K).
    """
    values = weights.detach().to(torch.promote_types(weights.dtype, torch.float32)).clone()
    check_floor(floor, values, "start_floor")
    off_simplex = (values.sum(-1) - 1).abs().max() > 1e-2
    if not values.isfinite().all() or values.min() < 0 or off_simplex:
        raise ManticoreError(
            f"search: mixture weights must be probabilities whose rows sum to 1 (got {values.tolist()}). "
            "Fix: hybrid.set_mixture_weights(...)"
        )
    raised = values.clamp_min(floor)
    return raised / raised.sum(-1, keepdim=True)


def check_floor(floor: float, weights: Tensor, name: str) -> None:
    """Refuses a floor that rows of ``weights`` ``[..., K]`` cannot keep."""
    components = weights.shape[-1]
    if not 0 < floor < 1 / components:
        raise ManticoreError(
            f"search: {name} must lie between 0 and 1 / {components} components (got {floor}). Fix: for instance 0.01"
        )


def mixture_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All probabilities an optimizer holds, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def init_logits(optimizer: torch.optim.Optimizer, start_floor: float) -> None:
    """Gives every parameter its logits and empty moments; the names are those the optimizer's state keeps."""
    for parameter in mixture_parameters(optimizer):
        alpha = lifted(parameter, start_floor).log()
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "alpha": alpha,
            "exp_avg": torch.zeros_like(alpha),
            "exp_avg_sq": torch.zeros_like(alpha),
        }


def adamw_on_logits(optimizer: torch.optim.Optimizer, *, temperature: float) -> None:
    """AdamW on ``alpha`` where the model holds ``p = softmax((alpha + noise) / temperature)``."""
    for group in optimizer.param_groups:
        used = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [optimizer.state[parameter] for parameter in used]
        gradients = []
        for parameter in used:
            gradient = finite_gradient(parameter)
            p = parameter.to(gradient.dtype)
            gradients.append(p * (gradient - (p * gradient).sum(-1, keepdim=True)) / temperature)
        adamw(
            [state["alpha"] for state in states],
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def finite_gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient ``[..., K]`` in at least float32.

    Raises:
        ManticoreError: it holds NaN or infinity.
    """
    gradient = parameter.grad
    if gradient is None or not gradient.isfinite().all():
        raise ManticoreError(
            "search: the gradient of the mixture weights is not finite. Fix: lower lr or mixture_lr, or use float32"
        )
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
