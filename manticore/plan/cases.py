"""A hybrid measured in one setting, at any batch size up to the largest: FLOPs, parameters, peaks.

Bytes grow in proportion with the batch, so that they are measured at one example and at the largest batch and taken
on the line between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.plan.memory import Inventory, Strategy, evaluation_peak, inventory, training_peak
from manticore.plan.pieces import Bench, Part, scaled, without_data
from manticore.plan.skeleton import Skeleton, path_mixing
from manticore.training.budget import copy_without_data


@dataclass(frozen=True)
class Setting:
    """What decides about the memory of a training step, beside model and batch."""

    trainable: str
    checkpointing: bool
    bf16: bool

    def __str__(self) -> str:
        extra = [name for name, on in (("checkpointing", self.checkpointing), ("bf16", self.bf16)) if on]
        return " + ".join([self.trainable, *extra])


@dataclass(frozen=True)
class Case:
    """One hybrid in one setting."""

    held: Inventory
    counted: list[Part]
    """With the FLOPs of a whole micro-batch; empty where these were not asked for."""
    small: list[Part]
    large: list[Part]
    micro_batch: int
    accumulation: int

    @property
    def forward_flops(self) -> float:
        """Of a micro-batch, the forward pass alone."""
        return sum(part.piece.forward_flops for part in self.counted)

    @property
    def flops(self) -> float:
        """Of a micro-batch, forward and backward."""
        return self.forward_flops + sum(part.piece.backward_flops for part in self.counted)

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
        largest = max(2, self.micro_batch)
        return scaled(self.small, self.large, (batch_size - 1) / (largest - 1))


class Cases:
    """Measures cases of one skeleton; those of one setting together.

    Args:
        skeleton: the supernet.
        mode: of tensors without data.
        lora_rank: rank of low-rank updates.
    """

    def __init__(self, skeleton: Skeleton, mode: FakeTensorMode, *, lora_rank: int) -> None:
        self.skeleton, self.mode, self.lora_rank = skeleton, mode, lora_rank

    def measure(
        self,
        setting: Setting,
        paths: Sequence[Sequence[int] | None],
        *,
        batch_size: int,
        length: int,
        accumulation: int = 1,
        mixture: bool = True,
        flops: bool = True,
        one_size: bool = False,
    ) -> list[Case]:
        """One case per path; None stands for the supernet.

        Args:
            setting: what trains and how.
            paths: one component index per block each.
            batch_size: examples per optimizer step, over all devices.
            accumulation: micro-batches per step.
            length: tokens per example.
            mixture: whether the supernet's mixture weights train.
            flops: whether FLOPs are counted too; else they are 0.
            one_size: peaks are wanted for this batch on one device only.
        """
        micro = max(1, batch_size // accumulation)
        sizes = (micro,) if one_size else (1, max(2, micro))
        model = self.skeleton.trained(setting.trainable, lora_rank=self.lora_rank, mixture=mixture)
        kinds = self.skeleton.kinds
        measured: list[list[list[Part]]] = []
        held: list[Inventory] = []
        # the counter keeps tensors alive that are gone without it, so bytes and FLOPs are measured apart
        for size, count in [*((size, False) for size in sizes), *([(micro, True)] if flops else [])]:
            with without_data(self.mode, flops=count) as (alive, counted):
                hybrid = copy_without_data(model)

                def bench(of: ManticoreForCausalLM, size: int = size, counted: Callable[[], int] = counted) -> Bench:
                    return Bench(
                        of, kinds, alive, counted,
                        batch_size=size, length=length, bf16=setting.bf16, checkpointing=setting.checkpointing,
                    )  # fmt: skip

                common, held = bench(hybrid), []
                measured.append([])
                for path in paths:
                    used = common
                    if path is not None and path[0] != path[-1] and self._trains_heads_alone(setting):
                        # where it shares its table with a head that is dropped, it does not train
                        used = bench(copy_without_data(model))
                        used.runners[path[0]].model.get_input_embeddings().requires_grad_(False)
                    mixing = used.hybrid.mixing if path is None else path_mixing(used.hybrid, path)
                    measured[-1].append(used.parts(mixing))
                    held.append(inventory(used.hybrid, kinds, mixing, path))
        large = len(sizes) - 1
        return [
            Case(own, measured[-1][i] if flops else [], measured[0][i], measured[large][i], micro, accumulation)
            for i, own in enumerate(held)
        ]

    def _trains_heads_alone(self, setting: Setting) -> bool:
        return setting.trainable == "frozen" and not self.skeleton.fresh_vocabulary

    def evaluation(self, path: Sequence[int] | None, *, batch_size: int, length: int) -> float:
        """Bytes of a forward pass without gradients."""
        model = self.skeleton.trained("all", lora_rank=self.lora_rank, mixture=False)
        with without_data(self.mode, flops=False) as (alive, flops):
            hybrid = copy_without_data(model)
            mixing = hybrid.mixing if path is None else path_mixing(hybrid, path)
            bench = Bench(
                hybrid, self.skeleton.kinds, alive, flops, batch_size=batch_size, length=length, backward=False
            )
            parts = bench.parts(mixing)
            return evaluation_peak(parts, inventory(hybrid, self.skeleton.kinds, mixing, path))
