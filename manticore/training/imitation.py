"""Losses against a teacher, and the trainers that minimise them.

Of the blocks: the mean over the compared boundaries of |student - teacher|² / (D · variance of the teacher there), so
that 1 is as far off as always giving the mean. Of the logits: (1 - alpha) · temperature² · KL(teacher ‖ student) of the
distributions softmax(logits / temperature) + alpha · cross entropy. Both are means over the positions of an optimizer
step that count.
Shapes: B batch, T tokens, D width, V vocabulary, M positions that count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manticore.training.batches import IGNORED, batches, model_inputs
from manticore.training.trainer import TaskTrainer

if TYPE_CHECKING:
    from manticore.tasks.task import Task
    from manticore.training.answers import Answers
    from manticore.training.teacher import Counterpart, Teacher

_SCALED_ON = 64
"""Examples that the spread of the teacher's features is measured on."""


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """temperature² · KL(teacher ‖ student) of ``[M, V]`` logits, summed over positions, in float32 or better."""
    wide = [logits if logits.dtype == torch.float64 else logits.float() for logits in (teacher, student)]
    theirs, ours = (functional.log_softmax(logits / temperature, -1) for logits in wide)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="sum", log_target=True)


def feature_error(teacher: Tensor, student: Tensor, variance: float) -> Tensor:
    """Squared distance of ``[M, D]`` features over D times the teacher's variance, summed over positions."""
    return (student.float() - teacher.float()).square().mean(-1).sum() / variance


def read_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """``[B, T]``: the positions that a target depends on, without padding and what stands behind the last target."""
    asked = batch["targets"] != IGNORED
    read = asked.flip(-1).cumsum(-1).flip(-1) > 0
    mask = batch.get("attention_mask")
    return read if mask is None else read & mask.bool()


def variances(teacher: Teacher, counterparts: list[Counterpart], task: Task, device: torch.device) -> dict[int, float]:
    """Boundary → mean squared deviation of the teacher's channels from their means, on the first training examples."""
    held: dict[int, list[Tensor]] = {}
    rows = batches(task.data["train"], length=task.length, batch_size=_SCALED_ON // 4, max_examples=_SCALED_ON)
    for batch in rows:
        here = {name: value.to(device) for name, value in batch.items()}
        for n, features in teacher.features(counterparts, here).items():
            held.setdefault(n, []).append(features[read_positions(here)].double())
    # features that never change are compared as they are
    return {n: float(torch.cat(parts).var(0, correction=0).mean()) or 1.0 for n, parts in held.items()}


class LogitsTrainer(TaskTrainer):
    """Trains towards the teacher's predictions and the true targets."""

    def __init__(
        self,
        *args: Any,
        teacher: Teacher,
        temperature: float,
        alpha: float,
        answers: Answers | None = None,
        **kwargs: Any,
    ) -> None:
        self.teacher, self.temperature, self.alpha, self.answers = teacher, temperature, alpha, answers
        super().__init__(*args, **kwargs)

    def _summed_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        theirs = self.teacher.logits(inputs) if self.answers is None else self.answers.of(inputs)
        truth, outputs = super()._summed_loss(model, inputs)
        asked = inputs["targets"] != IGNORED
        ours = outputs.logits[..., : self.teacher.rows]
        imitated = divergence(theirs[asked].to(ours.device), ours[asked], self.temperature)
        return (1 - self.alpha) * imitated + self.alpha * truth, outputs


class BlocksTrainer(TaskTrainer):
    """Trains towards what the components hold at the boundaries of the blocks when they run alone."""

    def __init__(
        self,
        *args: Any,
        teacher: Teacher,
        counterparts: list[Counterpart],
        variances: Mapping[int, float],
        **kwargs: Any,
    ) -> None:
        self.teacher, self.counterparts, self.variances = teacher, counterparts, variances
        super().__init__(*args, **kwargs)

    def _summed_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        theirs = self.teacher.features(self.counterparts, inputs)
        outputs = with_states(model, inputs)
        return blocks_error(theirs, outputs.hidden_states, read_positions(inputs), self.variances), outputs

    def _counted(self, inputs: dict[str, Tensor]) -> Tensor:
        return read_positions(inputs).sum()


def with_states(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """A pass of a discretized hybrid for what enters its blocks and leaves the last; the head reads one position."""
    return model(**model_inputs(inputs), use_cache=False, output_hidden_states=True, logits_to_keep=1)


def blocks_error(
    theirs: Mapping[int, Tensor], ours: Sequence[Tensor], positions: Tensor, variances: Mapping[int, float]
) -> Tensor:
    """The mean of :func:`feature_error` over the boundaries that are compared.

    Args:
        theirs: boundary → ``[B, T, D]``.
        ours: of every boundary from 0.
        positions: ``[B, T]``, those that count.
        variances: boundary → the teacher's there.
    """
    errors = [
        feature_error(value[positions].to(ours[n].device), ours[n][positions], variances[n])
        for n, value in theirs.items()
    ]
    return torch.stack([error.to(errors[0].device) for error in errors]).mean()
