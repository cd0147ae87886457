"""What the parts of a supernet take, read off its own forward pass along each component, seen as that path.

A pass goes through blocks and, at hand-overs, projectors; what is left of it is the component's own forward around its
layers, with the head. A component that does not end the path runs its own forward without the head.
Shapes: B batch, T tokens, D width, K components, N blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from manticore.hybrid.inputs import Part
from manticore.hybrid.path import PathMixing
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.hybrid.views import path_view
from manticore.search.costs import Cost, Row

Meter = Callable[[], float]
"""Reads what has been taken so far."""


class Walks:
    """A supernet and its views, ready to be measured.

    Args:
        hybrid: a supernet.
    """

    def __init__(self, hybrid: ManticorePreTrainedModel) -> None:
        self.hybrid = hybrid
        self.blocks, self.components = hybrid.config.num_blocks, range(hybrid.config.num_components)
        self.views: list[Any] = [path_view(hybrid, [k] * self.blocks) for k in self.components]
        """Each component's own path."""
        pairs = itertools.permutations(self.components, 2) if self.blocks > 1 else ()
        self.joins = {(a, b): _join(hybrid, a, b) for a, b in pairs}
        """(from, to) → what joins a path that hands over there, before its last block."""
        self.documents: int = getattr(type(hybrid), "documents", 1)
        """How many sequences an example consists of."""

    def measured(
        self,
        meter: Meter,
        run: Callable[[Any], object],
        part: Part,
        caches: Sequence[Any] | None = None,
        *,
        share: float = 1.0,
        warm: bool = False,
    ) -> Cost:
        """One measurement of every part.

        Args:
            meter: reads what counts.
            run: the forward pass of a view.
            part: what that pass reads.
            caches: of each component, that it goes on from; None: nothing is cached.
            share: what a unit of the meter counts.
            warm: everything is run once before it is measured, as decoding does the same again and again.
        """
        # before any pass makes the caches longer
        alone, hidden = [], []
        for k in self.components:
            given = part.for_each([k], None if caches is None else caches[k])[k]
            if warm:
                self.hybrid._runner(k).record(**given)
            begun = meter()
            recording = self.hybrid._runner(k).record(**given)
            alone.append((meter() - begun) * self.documents * share)
            hidden.append(recording.hidden)
        handovers = {}
        for (a, b), mixing in self.joins.items():
            if warm:
                mixing.enter(self.blocks - 1, {a: hidden[a]}, [b])
            begun = meter()
            mixing.enter(self.blocks - 1, {a: hidden[a]}, [b])
            handovers[a, b] = (meter() - begun) * self.documents * share
        blocks, around = [], []
        for k in self.components:
            if warm:
                run(self.views[k])
            spans, rest = self._walk(k, meter, run)
            blocks.append([share * span for span in spans])
            around.append(share * rest)
        return self.table(blocks, handovers, alone, lambda first, head: around[head] - alone[head])

    def table(
        self,
        blocks: Sequence[Sequence[float]],
        handovers: Mapping[tuple[int, int], float],
        presence: Sequence[float],
        ends: Callable[[int, int], float],
    ) -> Cost:
        """A table of what was found.

        Args:
            blocks: per component, ``[K][N]``.
            handovers: (from, to) → of the projector.
            presence: per component.
            ends: of a path that begins in one component and whose head is another's.
        """
        each = self.components
        last = self.hybrid.config.head_block == self.blocks - 1
        return Cost(
            blocks=tuple(zip(*blocks)),
            handovers=_rows([[handovers.get((a, b), 0.0) for b in each] for a in each]),
            presence=tuple(presence),
            # the released function reads the head of the first
            ends=_rows([[ends(a, b if last else a) for b in each] for a in each]),
        )

    def _walk(self, k: int, meter: Meter, run: Callable[[Any], object]) -> tuple[list[float], float]:
        """What the blocks of component k take, and the rest of its pass."""
        readings: list[float] = []

        def note(*_: Any) -> None:
            readings.append(meter())

        layers, handles = self.hybrid._runner(k).layers, []
        for start, stop in itertools.pairwise(self.hybrid.config.boundaries[k]):
            handles += [layers[start].register_forward_pre_hook(note), layers[stop - 1].register_forward_hook(note)]
        try:
            begun = meter()
            run(self.views[k])
            whole = meter() - begun
        finally:
            for handle in handles:
                handle.remove()
        spans = [b - a for a, b in zip(readings[::2], readings[1::2])]
        # a classifier of pairs goes through the blocks once per document
        return [sum(spans[n :: self.blocks]) for n in range(self.blocks)], whole - sum(spans)


def whole_example(view: ManticorePreTrainedModel, part: Part) -> dict[str, Tensor]:
    """An example of a model that may read two documents."""
    return dict(zip(("input_ids", "input_ids_2"), [part.input_ids] * getattr(type(view), "documents", 1)))


def _join(hybrid: ManticorePreTrainedModel, a: int, b: int) -> PathMixing:
    mixing = path_view(hybrid, [a] * (hybrid.config.num_blocks - 1) + [b]).mixing
    assert isinstance(mixing, PathMixing)
    return mixing


def _rows(rows: Sequence[Sequence[float]]) -> tuple[Row, ...]:
    return tuple(map(tuple, rows))
