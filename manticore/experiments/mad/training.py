"""Trains a model on one MAD setting, once for every learning rate and weight decay of the protocol's grid.

One loop of its own beside the Trainer: the runs of a grid are small, on one device, see the same batches in the same
order, and train as one stacked model where that works. After every epoch each run is scored on the split that the
protocol selects on; a run ends when it is solved or no longer finite, and its result is that of the epoch with the
lowest perplexity there.
Shapes: G runs, B batch, T tokens.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manticore.components.masters import held_in_float32
from manticore.errors import ManticoreError
from manticore.kernels.mamba import fast_scan
from manticore.modes import kept_modes
from manticore.seeding import derive_seed
from manticore.tasks.mad.protocol import Hyper, Protocol
from manticore.tasks.mad.streams import Arrays
from manticore.tasks.metrics import IGNORE, MadMetrics
from manticore.training.stacked import StackedAdamW, StackedModel, why_not_stacked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 128
CPU_TOKENS = 128 * 128
"""What one run's batch holds in most settings."""

Watcher = Callable[[int, int, Mapping[str, Any]], None]
"""Called after every epoch with (epochs done, epochs at most, {"loss": mean over the runs})."""


@dataclass
class TrainedRun:
    """What became of one run."""

    hyper: Hyper
    ended: str = "all epochs"
    """``"all epochs"``, ``"solved"`` or ``"not finite"``."""
    best_epoch: int | None = None
    """Counted from 1; None: no epoch had a finite perplexity."""
    selection: dict[str, float] = field(default_factory=dict)
    """Metrics of the best epoch on the split that selects."""
    test: dict[str, float] = field(default_factory=dict)
    """Metrics of the same epoch on the test split."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch: ``epoch``, ``lr``, ``train_loss``, and the metrics of the selection split."""
    seconds: float = 0.0
    """Its share of the time that it and the runs beside it took."""
    together: int = 1
    """Runs that trained side by side."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def train_runs(
    model: PreTrainedModel,
    data: Mapping[str, Arrays],
    hypers: Sequence[Hyper],
    protocol: Protocol,
    *,
    seed: int = 0,
    stacked: bool | None = None,
    bf16: bool = False,
    watch: Watcher | None = None,
) -> list[TrainedRun]:
    """Train and score `model` once per point of the grid, always from the weights that it has now, held in float32.

    Args:
        model: not changed; its device is where training runs.
        data: inputs and targets of ``train``, of ``test``, and of ``validation`` where the protocol selects on that.
        hypers: the points.
        protocol: everything else.
        seed: of the order of the data, which is the same for all points.
        stacked: all points in one pass (True) or one after another (False); None: in one pass on an accelerator, if the
            model can.
        bf16: compute in bfloat16, as the published runs do, with weights in float32.
        watch: called after every epoch.

    Raises:
        ManticoreError: `stacked` is asked for and the model cannot, or the data lack a split.
    """
    device = next(model.parameters()).device
    for split in ("train", "test", protocol.selection):
        if split not in data:
            raise ManticoreError(f"mad: the data have no split {split!r}, which the protocol needs. Fix: add it")
    tensors = {split: tuple(torch.from_numpy(a).to(device) for a in pair) for split, pair in data.items()}
    with kept_modes(model), fast_scan(model), held_in_float32(model):
        model.eval()
        if stacked is not False and len(hypers) > 1 and (stacked or device.type != "cpu"):
            reason = why_not_stacked(model, tensors["train"][0][:2])
            if reason is not None and stacked:
                raise ManticoreError(
                    f"mad: {type(model).__name__} cannot train its runs in one pass ({reason}). "
                    "Fix: one after another (--one-by-one)"
                )
            if reason is not None:
                logger.warning(
                    "%s: runs train one after another, which takes longer (%s)", type(model).__name__, reason
                )
            stacked = reason is None
        groups = [list(hypers)] if stacked else [[hyper] for hyper in hypers]
        outcomes = []
        for index, group in enumerate(groups):
            watcher = _part(watch, index, len(groups))
            outcomes += _train(model, tensors, group, protocol, seed=seed, bf16=bf16, watch=watcher)
    return outcomes


def _train(
    model: PreTrainedModel,
    data: Mapping[str, tuple[Tensor, ...]],
    hypers: list[Hyper],
    protocol: Protocol,
    *,
    seed: int,
    bf16: bool,
    watch: Watcher | None,
) -> list[TrainedRun]:
    start = time.perf_counter()
    inputs, targets = data["train"]
    copies = StackedModel(model, len(hypers))
    optimizer = StackedAdamW(copies, [hyper.weight_decay for hyper in hypers], betas=protocol.betas)
    outcomes = [TrainedRun(hyper, together=len(hypers)) for hyper in hypers]
    going = list(outcomes)
    for epoch in range(protocol.epochs):
        model.train()
        lrs = [run.hyper.lr * protocol.lr_factor(epoch, run.hyper.lr) for run in going]
        order = torch.randperm(len(inputs), generator=_generator(seed, epoch)).to(inputs.device)
        total = torch.zeros(len(going), device=inputs.device)
        for rows in order.split(protocol.batch_size):
            losses, gradients = losses_and_gradients(copies, inputs[rows], targets[rows], bf16=bf16)
            optimizer.step(gradients, lrs)
            total += losses * len(rows)
        model.eval()
        train_losses = (total / len(inputs)).tolist()
        scores = evaluate_copies(copies, *data[protocol.selection], bf16=bf16)
        improved = []
        for index, (run, lr, loss, score) in enumerate(zip(going, lrs, train_losses, scores)):
            run.history.append({"epoch": epoch + 1, "lr": lr, "train_loss": loss, **score})
            if score["mad_perplexity"] < run.selection.get("mad_perplexity", math.inf):
                run.best_epoch, run.selection = epoch + 1, score
                improved.append(index)
            if not math.isfinite(loss) or not math.isfinite(score["loss"]):
                run.ended = "not finite"
            elif score["mad_macro"] >= protocol.stop_at:
                run.ended = "solved"
        if improved:
            tested = scores if protocol.selection == "test" else evaluate_copies(copies, *data["test"], bf16=bf16)
            for index in improved:
                going[index].test = tested[index]
        if watch is not None:
            watch(epoch + 1, protocol.epochs, {"loss": sum(train_losses) / len(train_losses)})
        staying = [index for index, run in enumerate(going) if run.ended == "all epochs"]
        if not staying:
            break
        if len(staying) < len(going):
            going = [going[index] for index in staying]
            copies.keep(staying)
            optimizer.keep(staying)
    for run in outcomes:
        run.seconds = (time.perf_counter() - start) / len(outcomes)
    return outcomes


def losses_and_gradients(
    copies: StackedModel, inputs: Tensor, targets: Tensor, *, bf16: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of one batch, and the gradient of each copy's own loss, stacked.

    Args:
        copies: the runs.
        inputs: ``[B, T]``.
        targets: ``[B, T]``.
        bf16: compute in bfloat16.

    Returns:
        Losses ``[G]``, and parameter name → gradient ``[G, ...]``.
    """
    scored = (targets != IGNORE).sum()
    losses = torch.zeros(copies.copies, device=inputs.device)
    gradients: list[Tensor] = []
    parts = list(zip(_parts(copies, inputs), _parts(copies, targets)))
    for x, y in parts:
        share = (y != IGNORE).sum() / scored
        if len(parts) > 1 and share == 0:
            continue
        with _precision(inputs.device, bf16):
            part = copies.loss(x, y) * share
        found = torch.autograd.grad(part.sum(), list(copies.parameters.values()), materialize_grads=True)
        gradients = [a + b for a, b in zip(gradients, found)] if gradients else list(found)
        losses += part.detach()
    return losses, dict(zip(copies.parameters, gradients))


def _parts(copies: StackedModel, rows: Tensor) -> tuple[Tensor, ...]:
    """A batch as it goes through the copies.

    On a CPU in parts of at most CPU_TOKENS tokens over all copies, as larger tensors fall out of its caches and are
    fetched from the system anew for every operator. One copy gets its batch whole.
    """
    if rows.device.type != "cpu" or copies.copies == 1:
        return (rows,)
    return rows.split(max(1, CPU_TOKENS // (copies.copies * rows.shape[1])))


@torch.no_grad()
def evaluate_copies(copies: StackedModel, inputs: Tensor, targets: Tensor, *, bf16: bool) -> list[dict[str, float]]:
    """Metrics of every copy; inputs and targets are ``[examples, T]``."""
    states = [MadMetrics() for _ in range(copies.copies)]
    for batch, wanted in zip(inputs.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH)):
        with _precision(inputs.device, bf16):
            logits = torch.cat([copies.logits(part) for part in _parts(copies, batch)], 1)
        for state, own in zip(states, logits):
            state.update(own, wanted)
    return [state.compute() for state in states]


def _precision(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "mad data order", epoch))


def _part(watch: Watcher | None, index: int, parts: int) -> Watcher | None:
    """A watcher of one of several equal parts of the work."""
    if watch is None:
        return None
    return lambda done, epochs, row: watch(index * epochs + done, parts * epochs, row)
