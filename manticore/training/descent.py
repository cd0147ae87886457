"""The language-modelling loss of a hybrid, and gradient steps on its projectors alone.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manticore.components.masters import held_in_float32
from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.seeding import derive_seed
from manticore.tasks.metrics import IGNORE
from manticore.training.calibration import Packs

if TYPE_CHECKING:
    from manticore.hybrid.modeling import ManticoreForCausalLM

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with (step, steps, figures such as the loss)."""


class Clock:
    """Counts batches for whoever watches."""

    def __init__(self, progress: Progress | None, steps: int) -> None:
        self.progress, self.step, self.steps = progress, 0, steps

    def tick(self, **figures: float) -> None:
        self.step += 1
        if self.progress is not None:
            self.progress(self.step, self.steps, figures)


@torch.no_grad()
def mean_loss(hybrid: ManticoreForCausalLM, packs: Packs, batch_size: int, clock: Clock) -> tuple[float, int]:
    """Mean cross entropy over all targets, and the FLOPs that it took."""
    total, targets, flops_per_pack = 0.0, 0, 0.0
    for batch in packs.batches(batch_size, hybrid.device):
        with counted(not flops_per_pack) as count:
            total += float(_cross_entropy(hybrid, batch, reduction="sum"))
        flops_per_pack = flops_per_pack or count() / len(batch)
        targets += int((batch.targets != IGNORE).sum())
        clock.tick()
    return total / max(targets, 1), round(flops_per_pack * len(packs))


def _cross_entropy(hybrid: ManticoreForCausalLM, batch: Packs, reduction: str) -> Tensor:
    logits = hybrid(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    targets = batch.targets.to(logits.device).flatten()
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets, ignore_index=IGNORE, reduction=reduction
    )


def descend(
    hybrid: ManticoreForCausalLM, packs: Packs, steps: int, lr: float, batch_size: int, seed: int, clock: Clock
) -> int:
    """Gradient steps on the projectors; returns their FLOPs."""
    hybrid.requires_grad_(False)
    with held_in_float32(hybrid.mixing.projectors):
        return _descend(hybrid, packs, steps, lr, batch_size, seed, clock)


def _descend(
    hybrid: ManticoreForCausalLM, packs: Packs, steps: int, lr: float, batch_size: int, seed: int, clock: Clock
) -> int:
    parameters = list(hybrid.mixing.projectors.requires_grad_(True).parameters())
    if not parameters:
        raise ManticoreError("align: steps have no effect, since the hybrid has no projectors. Fix: steps=0")
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    flops_per_step = 0
    for step, batch in enumerate(drawn(packs, steps, batch_size, seed, "align steps")):
        with counted(step == 0) as count:
            loss = _cross_entropy(hybrid, batch.to(hybrid.device), reduction="mean")
            if not loss.requires_grad:
                raise ManticoreError(
                    "align: steps have no effect, since no projector is used at the hybrid's mixture weights. "
                    "Fix: steps=0, or set weights between the components first"
                )
            if not loss.isfinite():
                raise ManticoreError(f"align: the loss is {loss.item()} in step {step + 1}. Fix: a smaller lr")
            loss.backward()
        flops_per_step = flops_per_step or count()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        clock.tick(loss=loss.item())
    return flops_per_step * steps


def drawn(packs: Packs, steps: int, batch_size: int, seed: int, purpose: str) -> Iterator[Packs]:
    """A batch per step: every pack once before any comes again."""
    order = torch.empty(0, dtype=torch.long)
    epoch = 0
    for _ in range(steps):
        while len(order) < min(batch_size, len(packs)):
            generator = torch.Generator().manual_seed(derive_seed(seed, purpose, epoch))
            order = torch.cat([order, torch.randperm(len(packs), generator=generator)])
            epoch += 1
        yield packs.select(order[:batch_size])
        order = order[batch_size:]


@contextmanager
def counted(wanted: bool) -> Iterator[Callable[[], int]]:
    """The FLOPs of what runs inside; counting slows operators down, so one batch stands for all."""
    if not wanted:
        yield lambda: 0
        return
    with counted_flops() as counter:
        yield counter.get_total_flops
