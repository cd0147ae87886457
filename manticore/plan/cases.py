"""A hybrid measured in one setting, at any batch size up to the largest: FLOPs, parameters, peaks.

Bytes grow in proportion with the batch, so that they are measured at one example and at the largest batch and taken
on the line between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from torch._subclasses.fake_tensor import FakeTensorMode

from manticore.hybrid.shared_weights import shares_table
from manticore.plan.memory import Inventory, Strategy, evaluation_peak, inventory, training_peak
from manticore.plan.pieces import Bench, Part, scaled
from manticore.plan.skeleton import Skeleton


@dataclass(frozen=True)
class Setting:
    """What decides about the memory of a training step, beside model and batch."""

    trainable: str
    checkpointing: bool
    bf16: bool
    """Forward passes compute in bfloat16 (autocast)."""
    dtype: str | None = "auto"
    """What weights train in, as in :func:`manticore.finetune`; None: what they came in."""

    def __str__(self) -> str:
        extra = [name for name, on in (("checkpointing", self.checkpointing), ("bf16", self.bf16)) if on]
        return " + ".join([self.trainable, *extra])


class Case:
    """One hybrid in one setting.

    Args:
        held: its parameters.
        parts: its pieces, with a whole micro-batch on one device.
        one_example: gives its pieces with one example; asked for only where devices share a batch.
        micro_batch: examples in a micro-batch, over all devices.
        accumulation: micro-batches per step.
        length: tokens per example.
    """

    def __init__(
        self,
        held: Inventory,
        parts: list[Part],
        one_example: Callable[[], list[Part]],
        *,
        micro_batch: int,
        accumulation: int,
        length: int,
    ) -> None:
        self.held, self.parts, self.one_example = held, parts, one_example
        self.micro_batch, self.accumulation = micro_batch, accumulation
        self.tokens = micro_batch * length

    def holding(self, held: Inventory) -> Case:
        """The same pieces in a model that holds more."""
        return Case(
            held,
            self.parts,
            self.one_example,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            length=self.tokens // self.micro_batch,
        )

    @property
    def forward_flops(self) -> float:
        """Of a micro-batch, the forward pass alone."""
        return sum(part.piece.forward_flops for part in self.parts)

    @property
    def flops(self) -> float:
        """Of a micro-batch, forward and backward."""
        return self.forward_flops + sum(part.piece.backward_flops for part in self.parts)

    def peak(self, devices: int = 1, strategy: Strategy = "data parallel") -> float:
        """Bytes on each device in a training step."""
        return training_peak(
            self._at(-(-self.micro_batch // devices)),
            self.held,
            devices=devices,
            strategy=strategy,
            accumulation=self.accumulation,
        )

    def _at(self, batch_size: int) -> list[Part]:
        if batch_size == self.micro_batch:
            return self.parts
        return scaled(self.one_example(), self.parts, (batch_size - 1) / (self.micro_batch - 1))


class Cases:
    """Measures cases of one skeleton, and keeps what is measured.

    Args:
        skeleton: the supernet.
        mode: of tensors without data.
        lora_rank: rank of low-rank updates.
    """

    def __init__(self, skeleton: Skeleton, mode: FakeTensorMode, *, lora_rank: int) -> None:
        self.skeleton, self.mode, self.lora_rank = skeleton, mode, lora_rank
        self._benches: dict[tuple[object, ...], Bench] = {}

    def measure(
        self,
        setting: Setting,
        path: Sequence[int] | None,
        *,
        batch_size: int,
        length: int,
        accumulation: int = 1,
        mixture: bool = True,
    ) -> Case:
        """One path; None stands for the supernet.

        Args:
            setting: what trains and how.
            path: one component index per block.
            batch_size: examples per optimizer step, over all devices.
            length: tokens per example.
            accumulation: micro-batches per step.
            mixture: whether the supernet's mixture weights train; a path has none.
        """
        micro = max(1, batch_size // accumulation)

        @cache
        def at(size: int) -> tuple[Inventory, list[Part]]:
            bench = self._bench(setting, path, size, length, mixture)
            mixing = bench.mixing(path)
            return inventory(bench.hybrid, self.skeleton.kinds, mixing, path), bench.parts(mixing)

        held, parts = at(micro)
        return Case(held, parts, lambda: at(1)[1], micro_batch=micro, accumulation=accumulation, length=length)

    def evaluation(self, path: Sequence[int] | None, *, batch_size: int, length: int) -> float:
        """Bytes of a forward pass without gradients."""
        setting = Setting("all", False, False, None)
        bench = self._bench(setting, path, batch_size, length, False, backward=False)
        mixing = bench.mixing(path)
        return evaluation_peak(bench.parts(mixing), inventory(bench.hybrid, self.skeleton.kinds, mixing, path))

    def _apart(self, first: int, last: int) -> bool:
        """Whether the last component of a path predicts with another table than the first one reads."""
        components = self.skeleton.hybrid.component
        return first != last and not shares_table(components(first), components(last))

    def _bench(
        self,
        setting: Setting,
        path: Sequence[int] | None,
        size: int,
        length: int,
        mixture: bool,
        backward: bool = True,
    ) -> Bench:
        # where only heads train and one shares its table with embeddings, those of a dropped head do not train
        heads_alone = setting.trainable == "frozen" and not self.skeleton.fresh_vocabulary
        frozen = path[0] if heads_alone and path is not None and self._apart(path[0], path[-1]) else None
        key = setting, size, length, mixture, backward, frozen
        if key not in self._benches:
            model = self.skeleton.trained(
                setting.trainable, lora_rank=self.lora_rank, mixture=mixture, dtype=setting.dtype, bf16=setting.bf16
            )
            if frozen is not None:
                model.runners[frozen].model.get_input_embeddings().requires_grad_(False)  # type: ignore[union-attr]
            self._benches[key] = Bench(
                model, self.skeleton.kinds, self.mode,
                batch_size=size, length=length, bf16=setting.bf16, checkpointing=setting.checkpointing,
                backward=backward,
            )  # fmt: skip
        return self._benches[key]
