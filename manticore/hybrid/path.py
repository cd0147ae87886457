"""The discretized hybrid: one component per block, and projectors only where components change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.mixing import Features, Mixing, Translation
from manticore.projectors.kinds import make_projector
from manticore.projectors.projector import resize


def behind_projectors(path: Sequence[int], spaces: Sequence[int]) -> list[tuple[int, int]]:
    """(component, boundary) of the features of a path that new projectors have a part in, from the first of them on.

    Boundary n stands for what enters block n, N for what leaves the last; empty where the feature space never changes.

    Args:
        path: component per block.
        spaces: per component its feature space.
    """
    new = [n for n in range(1, len(path)) if spaces[path[n - 1]] != spaces[path[n]]]
    return [(path[min(n, len(path) - 1)], n) for n in range(new[0], len(path) + 1)] if new else []


class PathMixing(Mixing):
    """Follows ``config.path``. Gated hybrids hand features over untranslated, as their formula does at a vertex."""

    def __init__(self, config: ManticoreConfig) -> None:
        super().__init__(config)
        if config.path is None:
            raise ManticoreError("config: a discretized hybrid needs a path. Fix: make it with manticore.discretize")
        self.path = list(config.path)
        self._head = self.path[config.head_block]
        self.projectors = nn.ModuleDict()
        if config.mixing != "gated":
            for boundary, source, target in self.hand_overs():
                self.projectors[f"{boundary}_{source}_{target}"] = make_projector(
                    config.projector,
                    self.widths[source],
                    self.widths[target],
                    **(config.projector_options or {}),
                )

    def hand_overs(self) -> list[tuple[int, int, int]]:
        """(boundary, from, to) wherever the feature space changes."""
        pairs = zip(range(1, self.num_blocks), self.path, self.path[1:])
        return [(n, source, target) for n, source, target in pairs if self.spaces[source] != self.spaces[target]]

    def reset_mixture(self) -> None:
        """A path has nothing to reset."""

    def mixture_parameters(self) -> list[nn.Parameter]:
        """None: a path does not train."""
        return []

    def mixture_weights(self) -> Tensor:
        """One-hot rows ``[N, K]``."""
        return torch.nn.functional.one_hot(torch.tensor(self.path), self.num_components).float()

    def set_mixture_weights(self, weights: Tensor) -> None:
        """Only the kept path is possible.

        Raises:
            ManticoreError: any other weights.
        """
        if not torch.equal(weights.cpu(), self.mixture_weights()):
            raise ManticoreError(
                f"set_mixture_weights: this hybrid is discretized to path {self.path} and holds no other segments. "
                "Fix: set weights before discretizing"
            )

    def best_path(self) -> list[int]:
        """The path itself."""
        return list(self.path)

    def translations(self) -> list[Translation]:
        """The hand-overs' projectors."""
        return [
            Translation(f"{n}_{k}_{m}", self.projectors[f"{n}_{k}_{m}"], (k, n), (m, n))  # type: ignore[arg-type]
            for n, k, m in self.hand_overs()
            if f"{n}_{k}_{m}" in self.projectors
        ]

    def active(self) -> list[set[int]]:
        """The one component of each block."""
        return [{m} for m in self.path]

    def enter(self, boundary: int, features: Features, targets: Iterable[int]) -> Features:
        """The features themselves, translated where the component changes."""
        ((source, value),) = features.items()
        (target,) = targets
        if source != target:
            name = f"{boundary}_{source}_{target}"
            value = self.projectors[name](value) if name in self.projectors else resize(value, self.widths[target])
        return {target: value}

    def head_inputs(self, features: Features) -> Features:
        """The features of the last component, for its head; where that is released, for the first one's."""
        ((_, hidden),) = features.items()
        return {self._head: resize(hidden, self.widths[self._head])}

    def output_weights(self) -> list[tuple[int, Tensor | float]]:
        """The component whose head is kept."""
        return [(self._head, 1.0)]
