"""Fine-tune a model on a task: the same function for parents, supernets and hybrids."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from manticore.keywords import takes
from manticore.settings import Finetune
from manticore.training.begun import Begun, begun_beside
from manticore.training.callbacks import Progress
from manticore.training.evaluate import evaluate
from manticore.training.opening import opened
from manticore.training.precision import Precision, differing
from manticore.training.prepare import fit_to_task, resolve_task
from manticore.training.saved_models import load_model
from manticore.training.tracking import trackers
from manticore.training.trainable import merge_lora, set_trainable
from manticore.training.trainer import TaskTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from manticore.search.result import SearchResult
    from manticore.tasks.task import Task


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model and what it took."""

    model: PreTrainedModel
    """The model that was given, changed in place; of a task with classes the classifier that was made of it."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Input tokens seen."""
    flops: int
    """Training FLOPs, forward and backward."""
    seconds: float
    """Training time, earlier sessions of a resumed run included."""
    metrics: dict[str, float]
    """Metrics on the test split after training, of the weights in the type that they are saved in."""
    history: list[dict[str, float]]
    """One row per logged step: ``step``, ``loss``, ``learning_rate``, ``grad_norm``, ``epoch``."""
    metrics_float32: dict[str, float] | None = None
    """Metrics of the float32 weights before they were rounded, where one differs by more than 1e-3."""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """Name of a weight or buffer → the type that it is saved in."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, as JSON values."""
        names = ("steps", "tokens", "flops", "seconds", "metrics", "metrics_float32", "history")
        return {name: getattr(self, name) for name in names}


@takes(Finetune)
def finetune(
    model: PreTrainedModel | Begun | SearchResult | str | Path,
    task: str | Task,
    settings: Finetune,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    cpu: bool = False,
    progress: bool | Progress = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> FinetuneResult:
    """Train `model` on the training split of `task` and score it on the test split.

    The mixture weights of a hybrid stay as they are. A task with a vocabulary of its own gives the model fresh
    embeddings and a fresh head first, unless it has them already. A task with classes (``lra/…``) makes a classifier of
    the model first, unless it is one for as many classes: the result's ``model``, with copies of the weights.

    Args:
        model: a hybrid, a stack or any causal LM of transformers, or the folder of one; changed in place, or left as it
            is where a classifier is made of it. What a search has found, or its folder, goes on with the weights, the
            optimizer and the place in the data that the search left, where the settings are the same; a length and a
            warm-up that are not given are the search's. Else it starts anew, and a warning says why.
        task: a task, or the name of a registered one.
        settings: the options below in one object, which single ones change.
        seed: of the data order, dropout and fresh parameters.
        out: folder for ``metrics.jsonl`` and ``checkpoints/``; None writes nothing.
        resume: go on from the last complete checkpoint in `out`, if there is one.
        cpu: stay on the CPU where an accelerator is present.
        progress: True for a bar on the terminal, or a function of (step, steps, row).
        tokenizer: for tasks that read text; None takes the hybrid's.

    Raises:
        ManticoreError: impossible arguments, a budget below one step, a loss that is not finite, a full disk.
    """
    told = trackers(settings.report_to, out, stage="finetune")
    model, begun = _with_what_was_begun(model)
    if begun is not None:
        settings = begun.completed(settings)
    task = resolve_task(task, model, tokenizer, seed, stage="finetune")
    model = fit_to_task(model, task, seed)
    precision = Precision(model, settings.dtype, bf16=settings.bf16, cpu=cpu, stage="finetune")
    mixing = getattr(model, "mixing", None)
    for weights in mixing.mixture_parameters() if mixing is not None else ():
        # a search may have left them trainable; an ordinary optimizer would leave the simplex
        weights.requires_grad_(False)
    set_trainable(
        model,
        settings.trainable,
        fresh_vocabulary=task.vocab_size is not None,
        lora_rank=settings.lora_rank,
        seed=seed,
    )
    scores, scored = {}, {"batch_size": settings.batch_size, "max_examples": settings.test_examples}
    with opened(
        model,
        task,
        settings,
        precision,
        stage="finetune",
        draws="finetune",
        seed=seed,
        out=out,
        resume=resume,
        cpu=cpu,
        log_steps=settings.log_steps,
        begun=begun,
    ) as training:
        trainer = TaskTrainer(
            model,
            training.args,
            task,
            checkpoint=training.checkpoint,
            decay=settings.decay,
            metrics_file=None if out is None else training.folder / "metrics.jsonl",
            progress=progress,
            callbacks=told,
        )
        history = trainer.run()
        if precision.rounds:
            with precision.computing():
                scores = evaluate(model, task, **scored)
    if settings.trainable == "lora":
        merge_lora(model)
    metrics = evaluate(model, task, **scored)
    return FinetuneResult(
        model=model,
        steps=training.steps,
        tokens=training.steps * settings.batch_size * task.tokens_per_example,
        flops=training.steps * training.flops,
        seconds=trainer.stopwatch.seconds,
        metrics=metrics,
        history=history,
        metrics_float32=differing(scores, metrics) if scores else None,
        dtypes=dict(precision.saved),
    )


def loaded_student(model: Any) -> PreTrainedModel:
    """A model to train from its first step: of a folder, or what a search has found."""
    return _with_what_was_begun(model)[0]


def _with_what_was_begun(model: Any) -> tuple[PreTrainedModel, Begun | None]:
    """A model, and the training that a search has begun with it, where there is one."""
    if isinstance(model, str | Path):
        model = begun_beside(load_model(model)[0], model)
    begun = model if isinstance(model, Begun) else getattr(model, "begun", None)
    if begun is not None:
        return begun.model, begun
    # what a search has found that left nothing to go on with: its model alone
    found = not isinstance(model, nn.Module) and hasattr(model, "candidates")
    return (model.model if found else model), None
