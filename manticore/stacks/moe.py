"""Experts and their two routers.

    mad_code    scores below the k-th best are set to 0, then a softmax over all experts: all keep some weight
    sparse      scores below the k-th best are set to -inf: only k experts have weight

The first is what the released code of MAD computes, and so what its published scores rest on. In both every expert
is computed.

Shapes: B batch, T tokens, D width, E experts.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from manticore.errors import ManticoreError
from manticore.option_types import Count
from manticore.stacks.mixer import Mixer, Step, linear_flops

Router = Literal["mad_code", "sparse"]
_LEFT_OUT: dict[Router, float] = {"mad_code": 0.0, "sparse": float("-inf")}


def check_experts(top_k: int, num_experts: int) -> None:
    """Refuse more chosen experts than there are.

    Raises:
        ManticoreError: they are.
    """
    if top_k > num_experts:
        raise ManticoreError(f"top_k is {top_k} (expected at most num_experts, {num_experts}). Fix: a smaller top_k")


def router_weights(scores: Tensor, top_k: int, router: Router) -> Tensor:
    """Weights of the experts, summing to 1.

    Args:
        scores: ``[…, E]``.
        top_k: how many experts are chosen.
        router: ``"mad_code"`` or ``"sparse"``.
    """
    threshold = scores.topk(top_k, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < threshold, _LEFT_OUT[router]).softmax(-1)


class MoEMLP(Mixer):
    """Experts with gated units; the layer down from all units to every expert's output is one dense map.

    Args:
        num_experts: E.
        expert_width: units of an expert.
        top_k: experts that the router chooses.
        router: "mad_code": scores below the best ``top_k`` count as 0; "sparse": they are left out.
    """

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        num_experts: Count = 8,
        expert_width: Count = 16,
        top_k: Count = 2,
        router: Router = "mad_code",
    ) -> None:
        super().__init__()
        check_experts(top_k, num_experts)
        self.num_experts, self.top_k, self.router_kind = num_experts, top_k, router
        units = num_experts * expert_width
        self.router = nn.Linear(width, num_experts)
        self.up_proj = nn.Linear(width, units, bias=False)
        self.gate_proj = nn.Linear(width, units, bias=False)
        self.down_proj = nn.Linear(units, num_experts * width, bias=False)
        if router == "mad_code":
            # no part of the computation there either; it makes parameter counts those of the published models
            self.gates = nn.Parameter(torch.empty(num_experts, expert_width))

    def forward(self, hidden: Tensor, step: Step) -> Tensor:
        outputs = self.down_proj(self.up_proj(hidden) * F.gelu(self.gate_proj(hidden), approximate="tanh"))
        weights = router_weights(self.router(hidden), self.top_k, self.router_kind)
        # the expert is the fastest index of an output
        return (outputs.unflatten(-1, (-1, self.num_experts)) * weights[..., None, :]).sum(-1)

    def flops(self, tokens: int) -> int:
        return linear_flops((self.router, self.up_proj, self.gate_proj, self.down_proj), tokens)

    def reset_extra_parameters(self) -> None:
        if self.router_kind == "mad_code":
            init.normal_(self.gates)
