"""Weights per token inside the blocks: a mixing that is tried by a benchmark, and not in the product.

What enters a block is mixed with ``softmax(log a + sum_k G_k y_k)`` of the features y_k that left the block before, a
linear gate per token and block, zero at first, so that it starts as the translated mixing with weights a. Together with
``output="gate"`` every weight of a hybrid then depends on the text. ``two_sources.py`` compares it with ``bayes``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from manticore import registry
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.mixing import Features
from manticore.hybrid.routed import TranslatedMixing

CONTEXTUAL = "contextual"


class ContextualMixing(TranslatedMixing):
    """Translated mixing whose weights depend on the features."""

    def __init__(self, config: ManticoreConfig) -> None:
        super().__init__(config)
        self.maps = nn.ModuleDict(
            {
                f"{boundary}_{k}": nn.Linear(width, self.num_components, bias=False)
                for boundary in range(self.num_blocks)
                for k, width in enumerate(self.widths)
            }
        )
        for linear in self.maps.values():
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]

    def enter(self, boundary: int, features: Features, targets: Iterable[int]) -> Features:
        """The weights of a boundary are the same for every target, as in the translated mixing."""
        row = self.weights[max(boundary - 1, 0)].clamp_min(torch.finfo(torch.float32).tiny)
        total: Tensor = row.log()
        for k, value in features.items():
            total = total + self.maps[f"{boundary}_{k}"](value).float()
        shares = total.softmax(-1)
        return {
            target: sum(  # type: ignore[misc]
                shares[..., k, None].to(value.dtype)
                * (value if k == target else self.projectors[f"{boundary}_{k}_{target}"](value))
                for k, value in features.items()
            )
            for target in targets
        }


registry.register("mixing", CONTEXTUAL, ContextualMixing, "weights per token, from the features")
