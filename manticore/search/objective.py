"""What a candidate is judged by: an ordinary fine-tuning of its path, scored on held-out data at common marks.

Every candidate is trained by itself (the memory of one path), on the same data in the same order, at a constant rate
after the same warm-up, and can be gone on with: its checkpoints are those that ``finetune`` would have written.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from manticore.errors import ManticoreError, NotFiniteError
from manticore.hybrid.discretize import discretize
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.runs.ledger import RunLog
from manticore.runs.lineage import training_inputs, weights_digest
from manticore.search.curves import MARKS, UNTRAINED, Point, spacing, steps_at
from manticore.search.space import Path, Space, spelled
from manticore.settings import Finetune, OneTraining
from manticore.training.begun import UNIT
from manticore.training.budget import flops_per_step
from manticore.training.checkpoints import CHECKPOINTS, TENSORS, checkpoints
from manticore.training.opening import as_trained, opened
from manticore.training.precision import Precision
from manticore.training.scoring import score
from manticore.training.trainable import merge_lora, set_trainable
from manticore.training.trainer import TaskTrainer, default_warmup
from manticore.writing import write_json

if TYPE_CHECKING:
    from manticore.tasks.task import Task

AT_THE_END = 2**31
"""Steps between checkpoints: the last step writes one in any case."""
CURVE = "curve.jsonl"
"""A candidate's points."""
DIGITS = 5
"""Decimals that losses of examples are kept with."""


CANDIDATES = "candidates"


def place(search: Folder, path: Sequence[int]) -> Folder:
    """The checkpoints of a candidate, in the folder of a search."""
    return search / CANDIDATES / spelled(tuple(path)) / CHECKPOINTS


class Failed(Exception):
    """A candidate cannot go on; the search goes on without it."""

    points: Sequence[Point] = ()
    """Its points until then."""


class _Scoring(TrainerCallback):
    """Scores a candidate at the steps of its marks."""

    def __init__(self, steps: set[int], at: Callable[[int], None]) -> None:
        self._steps, self._at = steps, at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            self._at(state.global_step)


@dataclass
class Objective:
    """Trains the paths of a supernet and scores them.

    ``supernet`` is left as it is: with the task's vocabulary, or the classifier that the task asks for.
    """

    supernet: ManticorePreTrainedModel
    task: Task
    settings: Finetune
    """How every candidate trains; its warm-up is settled."""
    unit: int
    """Training FLOPs of a unit."""
    folder: Folder
    """Of the search; each candidate has a folder in it."""
    seed: int = 0
    examples: int = 256
    """Of the validation split."""
    cpu: bool = False
    _step_costs: dict[Path, int] = field(default_factory=dict)

    @property
    def space(self) -> Space:
        config = self.supernet.config
        return Space(config.num_blocks, config.num_components, fresh=config.fresh)

    @cached_property
    def inputs(self) -> Mapping[str, str]:
        """Digests of the supernet and of the data."""
        return training_inputs(self.supernet, self.task)

    @cached_property
    def marks(self) -> list[int]:
        """Where candidates are scored: every twelfth of a unit, or fewer where scoring would cost too much."""
        return spacing(max(self._evaluation_flops(self.model(path)) for path in self.space.alone), self.unit)

    @property
    def costliest_step(self) -> int:
        """Training FLOPs of a step of the costliest parent."""
        return max(self._step_flops(path) for path in self.space.parents)

    def model(self, path: Path) -> ManticorePreTrainedModel:
        """A candidate before its training, with what trains marked."""
        return self.prepared(discretize(self.supernet, path))

    def prepared(self, model: ManticorePreTrainedModel) -> ManticorePreTrainedModel:
        """A model with what trains marked."""
        for weights in model.mixing.mixture_parameters():
            weights.requires_grad_(False)
        fresh = self.task.vocab_size is not None
        rank = self.settings.lora_rank
        set_trainable(model, self.settings.trainable, fresh_vocabulary=fresh, lora_rank=rank, seed=self.seed)
        return model

    def place(self, path: Path) -> Folder:
        """A candidate's folder."""
        return self.folder / CANDIDATES / spelled(path)

    def steps(self, path: Path, mark: int) -> int:
        """Optimizer steps that a candidate has made at a mark."""
        return steps_at(mark, self.unit, self._step_flops(path))

    def advance(self, path: Path, mark: int) -> list[Point]:
        """Train a candidate to a mark, from where its checkpoints end, and score it at every mark on the way.

        Returns:
            Its points up to that mark, those of earlier calls and of an interrupted one included.

        Raises:
            Failed: it diverged, or there is not enough memory for it.
            ManticoreError: what ``finetune`` raises.
        """
        model = self.model(path)
        inputs = {**self.inputs, "weights": weights_digest(model)}
        if mark != UNTRAINED:
            self._step_flops(path, model)
        marks = sorted({mark, *(each for each in self.marks if each < mark)})
        key = {"settings": self.settings.key(task=self.task.name, seed=self.seed), "unit": self.unit}
        log = RunLog(self.place(path) / CURVE, {**key, "examples": self.examples}, inputs, resume=True, stage="search")

        def points() -> list[Point]:
            return [Point.read(point) for each in marks if (point := log.get(str(each))) is not None]

        missing = [each for each in marks if log.get(str(each)) is None]
        try:
            if missing == [UNTRAINED]:
                log.add(str(UNTRAINED), self._untrained(model).to_dict())
            elif missing:
                self._train(model, path, mark, missing, log, inputs)
        except Failed as failure:
            failure.points = points()
            raise
        return points()

    def measure(self, model: ManticorePreTrainedModel, mark: int) -> Point:
        """A candidate as it stands, on held-out data."""
        point = held_out(model, self.task, self.settings.batch_size, self.examples)
        return replace(point, mark=mark, spent=self._evaluation_flops(model))

    def _untrained(self, model: ManticorePreTrainedModel) -> Point:
        try:
            return self.measure(model, UNTRAINED)
        except NotFiniteError as error:
            raise Failed(f"untrained: {error}") from error
        except torch.OutOfMemoryError as error:
            raise Failed("out of memory") from error

    def _train(
        self,
        model: ManticorePreTrainedModel,
        path: Path,
        mark: int,
        missing: list[int],
        log: RunLog,
        inputs: Mapping[str, str],
    ) -> None:
        steps = self.steps(path, mark)
        settings = self.settings.model_copy(update={"steps": steps, "budget_flops": None, "save_steps": AT_THE_END})
        precision = Precision(model, settings.dtype, bf16=settings.bf16, cpu=self.cpu, stage="search")
        cost, due = self._step_flops(path), {self.steps(path, each): each for each in missing}

        def at(step: int) -> None:
            measured = self.measure(model, due[step])
            point = replace(measured, steps=step, flops=step * cost, seconds=trainer.stopwatch.seconds)
            log.add(str(point.mark), point.to_dict())

        try:
            with opened(
                model, self.task, settings, precision,
                stage="search", draws="finetune", seed=self.seed, out=self.place(path), resume=True, cpu=self.cpu,
                inputs=inputs,
            ) as training:  # fmt: skip
                trainer = TaskTrainer(
                    model, training.args, self.task, stage="search",
                    checkpoint=training.checkpoint, decay=settings.decay,
                    metrics_file=training.folder / "metrics.jsonl", callbacks=[_Scoring(set(due), at)],
                )  # fmt: skip
                write_json(training.folder / CHECKPOINTS / UNIT, self.unit)
                trainer.run()
                if log.get(str(mark)) is None:
                    # its last checkpoint was written, its last point was not
                    at(steps)
        except NotFiniteError as error:
            raise Failed(f"diverged: {error}") from error
        except torch.OutOfMemoryError as error:
            raise Failed("out of memory") from error

    def trained(self, path: Path) -> ManticorePreTrainedModel:
        """A candidate with the weights of its last checkpoint, in the type that they are saved in."""
        model = self.model(path)
        current: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        with torch.no_grad():
            for name, tensor in load_file(checkpoints(place(self.folder, path))[-1] / TENSORS).items():
                current[name].copy_(tensor)
        if self.settings.trainable == "lora":
            merge_lora(model)
        return model

    def discard(self, path: Path) -> None:
        """Remove what a candidate's training has left on the disk."""
        shutil.rmtree(self.place(path), ignore_errors=True)

    def _step_flops(self, path: Path, model: ManticorePreTrainedModel | None = None) -> int:
        if path not in self._step_costs:
            model = model or self.model(path)
            with as_trained(model, self.settings):
                self._step_costs[path] = flops_per_step(model, self.settings.batch_size, self.task.length)
        return self._step_costs[path]

    def _evaluation_flops(self, model: ManticorePreTrainedModel) -> int:
        examples = min(self.examples, len(self.task.data["validation"]))
        return examples * flops_per_step(model, 1, self.task.length, backward=False)


def tuning(settings: OneTraining) -> Finetune:
    """How candidates train where a search or a fine-tuning trains so; how long is left open."""
    return Finetune(**settings.shared(), lr=settings.lr)


def held_out(model: ManticorePreTrainedModel, task: Task, batch_size: int, examples: int) -> Point:
    """The score of a model on the first examples of the validation split; costs and mark are 0."""
    metrics, losses = score(model, task, "validation", batch_size=batch_size, max_examples=examples, each=True)
    kept = tuple(round(value, DIGITS) for value in losses.tolist())
    return Point(0, 0, 0, 0, math.fsum(kept) / len(kept), metrics[task.primary_metric], kept)


def unit_flops(
    supernet: ManticorePreTrainedModel, task: Task, settings: Finetune, given: float | None
) -> tuple[int, Finetune]:
    """The FLOPs of a unit, and settings whose warm-up is settled, the same for every candidate.

    Args:
        supernet: whose paths are the candidates.
        task: the data.
        settings: of fine-tuning: their length is a unit of the costliest parent, unless
        given: says otherwise.

    Raises:
        ManticoreError: a unit that does not pay for a step between two marks, or a rate that does not stay constant.
    """
    if settings.schedule != "constant":
        raise ManticoreError(
            f"search: schedule is {settings.schedule!r}, but candidates are compared while they train, at a constant "
            "rate. Fix: schedule='constant', or a method that learns mixture weights (method='darts')"
        )
    probe = Objective(supernet, task, settings, 1, Folder("."))
    costliest = probe.costliest_step
    steps = settings.steps or settings.default_steps
    unit = steps * costliest if given is None else int(given)
    if unit < MARKS * costliest:
        raise ManticoreError(
            f"search: a unit of {unit:.3g} FLOPs is fewer than {MARKS} steps of {costliest:.3g} FLOPs. "
            "Fix: a larger finetune_flops, or a smaller batch_size"
        )
    warmup = default_warmup(unit // costliest) if settings.warmup_steps is None else settings.warmup_steps
    return unit, settings.model_copy(update={"warmup_steps": warmup})
