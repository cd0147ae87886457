"""Gated mixing: the published formula, for reproduction and comparison.

Components meet in a common stream of width ``D = max d``. With one weight vector a per block, which is gate and
mixing weight at once:

- ``In_k(h) = (1 - a_k) L_{D→d_k}(h) + a_k cut(h, d_k)``
- ``Out_k(y) = (1 - a_k) L_{d_k→D}(y) + a_k pad(y, D)``
- ``h' = sum_k a_k Out_k(block_k(In_k(h)))``

At a vertex the projectors vanish, so features of different components meet untranslated. Four things differ from the
released code: the components' own embeddings and heads are used; learned positions are mixed with the embeddings
(there: added in full, for their component only); final norms come after the mixing (there: inside the branches); heads
mix with the last block's weights (there: the first block's). With ``released`` all four are as there
(:mod:`manticore.hybrid.released`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.mixing import Features, OneVectorPerBlock, Translation, weighted_sum
from manticore.projectors.kinds import make_projector
from manticore.projectors.projector import resize


class GatedMixing(OneVectorPerBlock):
    """Projectors into and out of a common stream, gated by the mixture weights."""

    def __init__(self, config: ManticoreConfig) -> None:
        super().__init__(config)
        self.stream_width = max(self.widths)
        options = config.projector_options or {}
        self.projectors = nn.ModuleDict()
        for block in range(self.num_blocks):
            for k, width in enumerate(self.widths):
                into = make_projector(config.projector, self.stream_width, width, **options)
                out = make_projector(config.projector, width, self.stream_width, **options)
                self.projectors[f"{block}_in_{k}"] = into
                self.projectors[f"{block}_out_{k}"] = out
        self._head_block = config.head_block
        self._make_mixture()
        self.reset_mixture()

    def translations(self) -> list[Translation]:
        """The common stream takes the features of the widest component, so its own projectors become identities."""
        widest = self.widths.index(self.stream_width)
        translations = []
        for name, projector in self.projectors.items():
            block_text, direction, component = name.split("_")
            block, k = int(block_text), int(component)
            source, target = (
                ((widest, block), (k, block)) if direction == "in" else ((k, block + 1), (widest, block + 1))
            )
            translations.append(Translation(name, projector, source, target))  # type: ignore[arg-type]
        return translations

    def active(self) -> list[set[int]]:
        """A component runs in a block unless its weight there is exactly zero."""
        (weights,) = self._reader.read([self.weights])
        everything = set(range(self.num_components))
        if weights is None:
            return [everything] * self.num_blocks
        return [{k for k in everything if row[k] != 0} for row in weights]

    def enter(self, boundary: int, features: Features, targets: Iterable[int]) -> Features:
        """``In_k`` of the common stream for each target k."""
        stream = self._stream(boundary, features)
        return {k: self._gate(boundary, k, "in", stream, self.widths[k]) for k in targets}

    def head_inputs(self, features: Features) -> Features:
        """Each head reads the first channels of the common stream."""
        stream = self._stream(self.num_blocks, features)
        return {k: resize(stream, self.widths[k]) for k, _ in self.output_weights()}

    def output_weights(self) -> list[tuple[int, Tensor | float]]:
        """The last block's weights, the first one's where that is released."""
        heads = self.route().blocks[self._head_block]
        return [(k, self._weight(self._head_block, k)) for k in heads]

    def _stream(self, boundary: int, features: Features) -> Tensor:
        """The common stream ``[B, T, max d]`` at a boundary."""
        block = max(boundary - 1, 0)
        return weighted_sum(
            [
                (
                    self._weight(block, k),
                    resize(features[k], self.stream_width)
                    if boundary == 0
                    else self._gate(block, k, "out", features[k], self.stream_width),
                )
                for k in sorted(features)
            ]
        )

    def _gate(self, block: int, k: int, direction: str, x: Tensor, width: int) -> Tensor:
        """``(1 - a) L(x) + a resize(x)``; at a = 1 the projector is not even called."""
        weight = self._weight(block, k)
        if not isinstance(weight, Tensor):
            return resize(x, width)
        projected = self.projectors[f"{block}_{direction}_{k}"](x)
        # one pass over the features where the formula as written takes three
        return torch.lerp(projected, resize(x, width), weight.to(x.dtype))

    def _weight(self, block: int, k: int) -> Tensor | float:
        """The weight, or the number 1 where it is exactly that and does not train."""
        (weights,) = self._reader.read([self.weights])
        return 1.0 if weights is not None and weights[block][k] == 1 else self.weights[block, k]
