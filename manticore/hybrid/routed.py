"""Routed and translated mixing.

Routed: block n has a row-stochastic matrix R(n) ``[K, K]``. The input of component m is
``x_m = sum_k R(n)_mk T_{k→m}(y_k)``, where y_k left the block before (or the embeddings) and ``T_{m→m}`` is the
identity, as T between components of one feature space is. Output weights mix the logits. R = I is the ensemble of the
components.

Translated: routed with equal rows. One weight vector a(n) per block; R(n) has rows a(n-1), R(0) has rows a(0).

At a vertex both are one path through the components, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.mixing import Features, Mixing, OneVectorPerBlock, Translation, weighted_sum
from manticore.projectors.kinds import make_projector


class RoutedMixing(Mixing):
    """One row-stochastic matrix per block, and output weights."""

    def __init__(self, config: ManticoreConfig) -> None:
        super().__init__(config)
        n, k = self.num_blocks, self.num_components
        self.projectors = nn.ModuleDict(
            {
                f"{boundary}_{source}_{target}": make_projector(
                    config.projector,
                    self.widths[source],
                    self.widths[target],
                    **(config.projector_options or {}),
                )
                for boundary in range(n)
                for source in range(k)
                for target in range(k)
                if self.spaces[source] != self.spaces[target]
            }
        )
        self._make_mixture()
        self.reset_mixture()

    def _make_mixture(self) -> None:
        n, k = self.num_blocks, self.num_components
        self.routing = nn.Parameter(torch.empty(n, k, k), requires_grad=False)
        self.weights = nn.Parameter(torch.empty(k), requires_grad=False)

    @torch.no_grad()
    def reset_mixture(self) -> None:
        """R = I and equal output weights: the ensemble of the components."""
        self.routing.copy_(torch.eye(self.num_components).expand_as(self.routing))
        self.weights.fill_(1 / self.num_components)

    def assume_ensemble(self) -> None:
        """Where parameters have no data: let what runs be as at R = I, with any output weights."""
        rows = torch.eye(self.num_components).repeat(self.num_blocks, 1).tolist()
        self._reader.assume([rows, None])

    def mixture_parameters(self) -> list[nn.Parameter]:
        """R ``[N, K, K]`` and the output weights ``[K]``."""
        return [self.routing, self.weights]

    def mixture_weights(self) -> Tensor:
        """Shares that reach the output, from the last block backwards: ``a(n-1) = a(n) R(n)``."""
        share = self.weights.detach().double()
        rows = [share]
        for matrix in self.routing.detach().double().flip(0)[:-1]:
            rows.insert(0, rows[0] @ matrix)
        return torch.stack(rows).float()

    @torch.no_grad()
    def set_mixture_weights(self, weights: Tensor) -> None:
        """The translated mixing with these weights: every row of R(n) is a(n-1)."""
        before = torch.cat([weights[:1], weights[:-1]])
        self.routing.copy_(before[:, None, :].expand_as(self.routing))
        self.weights.copy_(weights[-1])

    def best_path(self) -> list[int]:
        """The path with the largest product of weights (Viterbi); embeddings are the first component's own."""
        log_routing = self.routing.detach().double().clamp_min(1e-300).log()
        score = torch.zeros(self.num_components, dtype=torch.float64)
        back: list[Tensor] = []
        for matrix in log_routing[1:].cpu():
            best = (matrix + score[None, :]).max(dim=1)
            score = best.values
            back.append(best.indices)
        score = score + self.weights.detach().double().clamp_min(1e-300).log().cpu()
        path = [int(score.argmax())]
        for indices in reversed(back):
            path.insert(0, int(indices[path[0]]))
        return path

    def translations(self) -> list[Translation]:
        """Each projector maps one component's features at its boundary onto another's."""
        translations = []
        for name, projector in self.projectors.items():
            boundary, source, target = (int(part) for part in name.split("_"))
            translations.append(Translation(name, projector, (source, boundary), (target, boundary)))  # type: ignore[arg-type]
        return translations

    def row(self, boundary: int, target: int) -> Tensor:
        """``[K]``: what component ``target`` reads at a boundary; at the last boundary the output weights."""
        return self.weights if boundary == self.num_blocks else self.routing[boundary, target]

    def row_values(self, boundary: int, target: int) -> list[float] | None:
        """:meth:`row` as numbers, or None where it trains."""
        routing, weights = self._reader.read([self.routing, self.weights])
        if boundary == self.num_blocks:
            return None if weights is None else weights[0]
        return None if routing is None else routing[boundary * self.num_components + target]

    def active(self) -> list[set[int]]:
        """From the output backwards: a component runs if something that runs reads it."""
        blocks: list[set[int]] = []
        readers = {0}
        for boundary in range(self.num_blocks, 0, -1):
            needed: set[int] = set()
            for target in readers:
                values = self.row_values(boundary, target)
                needed |= {k for k in range(self.num_components) if values is None or values[k] != 0}
            blocks.insert(0, needed)
            readers = needed
        return blocks

    def embedded(self) -> set[int]:
        """What the components of block 0 read."""
        return {source for target in self.active()[0] for source, _ in self._nonzero(0, target)}

    def apart(self) -> bool:
        """Whether R = I, among the components in use."""
        used = self.route().used
        return all(
            self.row_values(n, k) == [float(k == source) for source in range(self.num_components)]
            for n in range(self.num_blocks)
            for k in used
        )

    def enter(self, boundary: int, features: Features, targets: Iterable[int]) -> Features:
        """``x_m = sum_k R(n)_mk T_{k→m}(y_k)`` for each target m."""
        return {m: self._read(boundary, m, features) for m in targets}

    def _read(self, boundary: int, target: int, features: Features) -> Tensor:
        terms = []
        for source, weight in self._nonzero(boundary, target):
            value = features[source]
            if self.spaces[source] != self.spaces[target]:
                value = self.projectors[f"{boundary}_{source}_{target}"](value)
            terms.append((weight, value))
        return weighted_sum(terms)

    def _nonzero(self, boundary: int, target: int) -> list[tuple[int, Tensor | float]]:
        """Components that ``target`` reads, each with its weight: a number unless it trains."""
        values = self.row_values(boundary, target)
        if values is None:
            return list(enumerate(self.row(boundary, target).unbind()))
        return [(k, value) for k, value in enumerate(values) if value != 0]

    def head_inputs(self, features: Features) -> Features:
        """The features themselves."""
        return {k: features[k] for k, _ in self.output_weights()}

    def output_weights(self) -> list[tuple[int, Tensor | float]]:
        """What the last boundary reads."""
        return self._nonzero(self.num_blocks, 0)


class TranslatedMixing(OneVectorPerBlock, RoutedMixing):
    """One weight vector per block, read alike by every component of the next."""

    def best_path(self) -> list[int]:
        """The component with the largest weight in each block."""
        return Mixing.best_path(self)

    def row(self, boundary: int, target: int) -> Tensor:
        """``[K]``: the weights of the block before, the same for every target."""
        return self.weights[max(boundary - 1, 0)]

    def row_values(self, boundary: int, target: int) -> list[float] | None:
        """:meth:`row` as numbers, or None where it trains."""
        (weights,) = self._reader.read([self.weights])
        return None if weights is None else weights[max(boundary - 1, 0)]
