"""The order of examples in a bilevel search: two halves of the training data take turns.

The examples are split once. An epoch is a sequence of chunks, each as many examples as one optimizer step
reads, alternately from the half that trains the network and from the half that trains the mixture weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from manticore.errors import ManticoreError
from manticore.seeding import derive_seed


class AlternatingHalves(Sampler[int]):
    """Indices of the training examples; chunk 0, 2, ... for the network, chunk 1, 3, ... for the mixture.

    Args:
        examples: number of training examples.
        chunk: examples per optimizer step, over all devices and accumulated batches.
        seed: seed of the split and of the order of each epoch.

    Raises:
        ManticoreError: a half holds less than one chunk.
    """

    def __init__(self, examples: int, chunk: int, seed: int) -> None:
        if examples // 2 < chunk:
            raise ManticoreError(
                "search: order='bilevel' needs two halves of the training data of at least one batch each "
                f"(got {examples} examples, {chunk} per step). "
                "Fix: a smaller batch_size, or order='alternating'"
            )
        shuffled = _permutation(examples, derive_seed(seed, "bilevel split"))
        self.network_half = shuffled[: examples // 2]
        self.mixture_half = shuffled[examples // 2 : 2 * (examples // 2)]
        self.chunk = chunk
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the epoch that is iterated next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.network_half) // self.chunk * self.chunk * 2

    def __iter__(self) -> Iterator[int]:
        halves = []
        for name, half in (("network", self.network_half), ("mixture", self.mixture_half)):
            order = _permutation(len(half), derive_seed(self.seed, f"bilevel {name} order", self.epoch))
            halves.append(half[order])
        for start in range(0, len(self) // 2, self.chunk):
            for half in halves:
                yield from half[start : start + self.chunk].tolist()


def _permutation(length: int, seed: int) -> torch.Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))
