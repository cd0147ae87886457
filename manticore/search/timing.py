"""Times what a supernet's parts take on this machine, in milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from manticore.components.cache_argument import CACHE_ARGUMENT
from manticore.hybrid.decoding import CachedGenerationMixin
from manticore.hybrid.inputs import Part
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.option_types import Workload
from manticore.search.costs import Cost, Row
from manticore.search.walks import Walks, whole_example

ROUNDS = 20
"""Measurements of which the median counts."""
FEWEST, SECONDS = 3, 30.0
"""Where measurements take long, so many are made at least, and no more are begun after so many seconds."""
FEWEST_TOKENS = 16
"""Of a workload that decoding is timed at: an eighth of them at most is decoded before a cache is filled anew."""


class Clock:
    """Times a supernet at a workload, each part once per round.

    Args:
        hybrid: a supernet in evaluation mode; outside of gradients.
        at: the workload.
        clock: gives seconds.
    """

    def __init__(self, hybrid: ManticorePreTrainedModel, at: Workload, clock: Callable[[], float]) -> None:
        self.walks, self.at, self._clock = Walks(hybrid), at, clock
        self.device = next(hybrid.parameters()).device
        shape, drawn = (at.batch, at.tokens), torch.Generator().manual_seed(0)
        self.input_ids = torch.randint(hybrid.config.vocab_size, shape, generator=drawn).to(self.device)

    def now(self) -> float:
        """Milliseconds, after all that was asked of the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return 1e3 * self._clock()

    def read(self, rounds: int) -> Cost:
        """Reading whole sequences, into a cache where the model generates."""
        part = Part(self.input_ids, None, None)

        def once() -> Cost:
            caches = self._new_caches()
            run = self._pass(part, caches)
            return self.walks.measured(self.now, run, part, self._new_caches())

        return _median(once, rounds)

    def decode(self, rounds: int) -> Cost:
        """The last token of each sequence, with all before it cached."""
        together = min(rounds, self.at.tokens // FEWEST_TOKENS)
        last, before = (Part(ids, None, None) for ids in (self.input_ids[:, -1:], self.input_ids[:, : -2 * together]))
        left, caches = 0, self._new_caches()

        def once() -> Cost:
            nonlocal left, caches
            if not left:
                left, caches = together, self._new_caches()
                for view in self.walks.views:
                    self._pass(before, caches)(view)
            left -= 1
            return self.walks.measured(self.now, self._pass(last, caches), last, caches, warm=True)

        return _median(once, rounds)

    def _pass(self, part: Part, caches: Sequence[Any] | None) -> Callable[[Any], object]:
        """A forward pass as generation makes it, each view with its own cache."""

        def run(view: Any) -> object:
            if caches is None:
                return view(**whole_example(view, part))
            cache = caches[view.config.path[0]]
            return view(input_ids=part.input_ids, use_cache=True, logits_to_keep=1, **{CACHE_ARGUMENT: cache})

        return run

    def _new_caches(self) -> list[Any] | None:
        """Per component an empty one; None of a classifier."""
        views = self.walks.views
        return [view.new_cache() for view in views] if isinstance(views[0], CachedGenerationMixin) else None


def _median(once: Callable[[], Cost], rounds: int) -> Cost:
    """Of every number by itself, after a round that does not count."""
    once()
    begun = time.perf_counter()
    found: list[Cost] = []
    while len(found) < rounds and (len(found) < FEWEST or time.perf_counter() - begun < SECONDS):
        found.append(once())

    def middle(rows: Sequence[Sequence[Row]]) -> tuple[Row, ...]:
        return tuple(tuple(statistics.median(values) for values in zip(*same)) for same in zip(*rows))

    return Cost(
        blocks=middle([cost.blocks for cost in found]),
        handovers=middle([cost.handovers for cost in found]),
        presence=middle([(cost.presence,) for cost in found])[0],
        ends=middle([cost.ends for cost in found]),
    )
