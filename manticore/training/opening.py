"""What every training on a task begins with: its type, its length, its folder, and the checkpoint to go on from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manticore.kernels.mamba import fast_scan, has_selective_scan
from manticore.modes import recomputed_activations
from manticore.runs.lineage import task_inputs, training_inputs
from manticore.seeding import derive_seed
from manticore.settings import Finetune, OneTraining
from manticore.training.begun import Begun
from manticore.training.budget import flops_per_step
from manticore.training.checkpoints import CHECKPOINTS, checkpoints, noted_inputs, open_folder
from manticore.training.precision import Precision
from manticore.training.trainer import training_arguments, with_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from manticore.tasks.task import Task


@contextmanager
def as_trained(model: PreTrainedModel, settings: OneTraining) -> Iterator[None]:
    """A model with the modules that it trains with inside, for counting what a step costs."""
    with fast_scan(model), recomputed_activations(model) if settings.gradient_checkpointing else nullcontext():
        yield


@dataclass(frozen=True)
class Opened:
    """A training that can begin, or go on."""

    steps: int
    flops: int
    """Of one step."""
    folder: Path
    """Where its checkpoints and metrics go; temporary where nothing is to be kept."""
    checkpoint: Path | None
    """The one to go on from."""
    args: TrainingArguments


@contextmanager
def opened(
    model: PreTrainedModel,
    task: Task,
    settings: OneTraining,
    precision: Precision,
    *,
    stage: str,
    draws: str,
    seed: int,
    out: str | Path | None,
    resume: bool,
    cpu: bool,
    log_steps: int | None = None,
    key: Mapping[str, object] | None = None,
    inputs: Mapping[str, str] | None = None,
    begun: Begun | None = None,
) -> Iterator[Opened]:
    """Bring a model into the state that it trains in, and its folder into order; afterwards it is as it is saved.

    Args:
        model: what trains (``requires_grad``) is settled.
        task: the data.
        settings: of the training.
        precision: of the model.
        stage: the verb that error messages begin with.
        draws: the name of its random streams.
        seed: of the run.
        out: folder for ``checkpoints/``; None writes nothing.
        resume: go on from the newest checkpoint in ``out``, if there is one.
        cpu: stay on the CPU where an accelerator is present.
        log_steps: steps between logged rows; None: about two hundred rows.
        key: what determines the numbers beside the settings, the task and the seed.
        inputs: digests of what is trained and read; None: those of the model and the task as they are.
        begun: the training that a search has begun with this model, to go on with where the settings are the same.

    Raises:
        ManticoreError: a budget below one step, or a folder of another training.
    """
    with ExitStack() as stack:
        stack.enter_context(fast_scan(model))
        stack.callback(precision.settle)
        precision.warn()
        precision.hold()
        if settings.gradient_checkpointing:
            stack.enter_context(recomputed_activations(model))
        flops = flops_per_step(model, settings.batch_size, task.length)
        settings = with_length(settings, flops, stage=stage)
        steps = settings.steps or settings.default_steps
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where, checkpoint = folder / CHECKPOINTS, None
        wanted = settings.key(**{"task": task.name, "seed": seed, "bf16": precision.autocast, **(key or {})})
        if begun is not None:
            data = task_inputs(task)
            if checkpoints(where):
                # of this training that a search has begun, or of another model
                began = (
                    begun.inputs if begun.inputs.get("weights") == (noted_inputs(where) or {}).get("weights") else None
                )
            else:
                began = begun.adopted(wanted, data, where)
                resume = resume or began is not None
            inputs = None if began is None else {**began, **data}
        if out is not None or checkpoints(where):
            checkpoint = open_folder(
                where,
                wanted,
                resume=resume,
                stage=stage,
                inputs=training_inputs(model, task) if inputs is None else inputs,
                scan=has_selective_scan(model),
                # what mixture weights learn depends on how long it takes
                grows=isinstance(settings, Finetune) and settings.schedule == "constant",
            )
        args = training_arguments(
            where,
            settings,
            log_steps=log_steps or max(1, steps // 200),
            saves=out is not None,
            seed=derive_seed(seed, draws),
            data_seed=derive_seed(seed, "data order"),
            bf16=precision.autocast,
            cpu=cpu,
        )
        yield Opened(steps, flops, folder, checkpoint, args)
