"""The one training loop: transformers' Trainer on tasks whose targets stand beside their inputs.

loss = sum over positions with targets[t] != -100 of -log softmax(logits[t])[targets[t]] / number of such positions,
over the whole optimizer step, however many micro-batches and processes it is cut into. A task's targets are aligned
(position t predicts targets[t]), so the loss is computed here and never by the model.

A run that is killed at any moment and resumed ends with the same weights and the same rows, bit for bit on one
CPU: checkpoints are renamed into place when whole, hold every tensor that training can change under its name in
memory, and fall together with a logged row.
Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from manticore.errors import ManticoreError, NotFiniteError
from manticore.processes import refuse_lost_processes
from manticore.settings import OneTraining
from manticore.training.batches import IGNORED, Collator, model_inputs
from manticore.training.budget import steps_within
from manticore.training.callbacks import LogAtCheckpoints, MetricsFile, Progress, ProgressBar, Stopwatch
from manticore.training.checkpoints import CLOCK, PARTIAL, TENSORS, checkpoint_step, publish
from manticore.training.decay import decayed
from manticore.training.sharding import complete_state, configure, refuse_unsharded, whole_embeddings
from manticore.training.tracking import PROJECT
from manticore.writing import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.tasks.task import Task

_KEPT_CHECKPOINTS = 2
_CHECKPOINTS_PER_RUN = 10

T = TypeVar("T", bound=OneTraining)


class TaskTrainer(Trainer):
    """Trains `model` on `task`'s training split; subclasses (the search) add optimizers and losses.

    Args:
        model: any causal LM of transformers, hybrids included; trained in place, what ``requires_grad`` allows.
        args: from :func:`training_arguments`.
        task: the data.
        stage: the verb that error messages and the progress bar begin with.
        checkpoint: the complete checkpoint to go on from.
        decay: what weight decay falls on: ``"maps"`` (:mod:`manticore.training.decay`) or ``"all"``.
        metrics_file: ``metrics.jsonl`` to write, if any.
        progress: True for a bar on the terminal, or a function called per logged step.
        callbacks: further callbacks.
    """

    # `compute_loss` divides by the targets of the whole optimizer step
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        task: Task,
        *,
        stage: str = "finetune",
        checkpoint: Path | None = None,
        decay: str = "maps",
        metrics_file: Path | None = None,
        progress: bool | Progress = False,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        train = task.data["train"]
        batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        if len(train) < batch_size:
            raise ManticoreError(
                f"{stage}: {task.name} has {len(train)} training examples, fewer than one batch "
                f"(batch_size={batch_size}). Fix: a smaller batch_size or more data"
            )
        if args.gradient_accumulation_steps * args.world_size > 1:
            # else the last step of an epoch would have fewer micro-batches than the others; and N processes read
            # the examples in the order in which one process with N micro-batches does
            train = train.select(range(len(train) // batch_size * batch_size))
        self.stage = stage
        self.task = task
        self.stopwatch = Stopwatch()
        self._decay = decay
        self._checkpoint = checkpoint
        self._saving = False
        watchers: list[TrainerCallback] = [LogAtCheckpoints(), self.stopwatch]
        if metrics_file is not None:
            watchers.append(MetricsFile(metrics_file))
        self._bar = ProgressBar(stage, progress if callable(progress) else None) if progress else None
        if self._bar is not None:
            watchers.append(self._bar)
        use_cache = getattr(model.config, "use_cache", None)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(task.length),
            train_dataset=train.with_format("numpy"),
            callbacks=[*watchers, *(callbacks or [])],
            **kwargs,
        )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        refuse_unsharded(stage, sharded)
        if self.is_fsdp_enabled:
            configure(self.accelerator.state.fsdp_plugin, model, stage)
        # transformers switches the cache off in the configuration, which would be saved with the model
        model.config.use_cache = use_cache
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True
        self._initially_trained = {n for n, p in model.named_parameters() if p.requires_grad}
        if not self._initially_trained:
            raise ManticoreError(
                f"{stage}: nothing to train, every parameter is frozen. Fix: another value of trainable"
            )

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        with whole_embeddings(self.model) if self.is_fsdp_enabled else nullcontext():  # type: ignore[arg-type]
            return super()._prepare_for_training(*args, **kwargs)

    def run(self) -> list[dict[str, float]]:
        """Train to the last step, from the checkpoint if one was given; returns the logged rows."""
        if self._checkpoint is not None:
            self.stopwatch.seconds = float((self._checkpoint / CLOCK).read_text())
        try:
            if self._checkpoint is not None and checkpoint_step(self._checkpoint) >= self.args.max_steps:
                if self.is_fsdp_enabled:
                    raise ManticoreError(
                        f"{self.stage}: the sharded run in {self.args.output_dir} has made all its steps, there is "
                        "nothing to resume. Fix: choose another out"
                    )
                self._load_from_checkpoint(str(self._checkpoint))
                self.state = TrainerState.load_from_json(str(self._checkpoint / "trainer_state.json"))
            else:
                self.train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None)
        finally:
            if self._bar is not None:
                self._bar.close()
        return [row for row in self.state.log_history if "loss" in row]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean over the positions, or examples, that count: of cross entropy, where nothing else is trained for."""
        total, outputs = self._summed_loss(model, inputs)
        loss = total / (self._counted(inputs) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None:
            # gradients are averaged over processes, the count spans all of them
            loss = loss * self.accelerator.num_processes
        self._check_finite("loss", float(loss.detach()))
        return (loss, outputs) if return_outputs else loss

    def _summed_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The sum over what counts, and what the model returned."""
        outputs = model(**model_inputs(inputs), use_cache=False)
        total = functional.cross_entropy(
            outputs.logits.flatten(0, -2).float(), inputs["targets"].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total, outputs

    def _counted(self, inputs: dict[str, Tensor]) -> Tensor:
        """How many positions, or examples, count."""
        return (inputs["targets"] != IGNORED).sum()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """What transformers' Trainer lets decay, without norms and what sets a recurrence; or everything."""
        if self._decay == "all":
            return [name for name, _ in model.named_parameters()]
        return decayed(model, super().get_decay_parameter_names(model))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: Any) -> Tensor | None:
        if not batch_samples:
            return None
        count = sum(self._counted(batch) for batch in batch_samples)
        return self.accelerator.gather(count.to(device)).sum()  # type: ignore[union-attr]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_finite("gradient norm", float(norm))
        return norm

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NotFiniteError(
                f"{self.stage}: {what} is {value} at step {self.state.global_step + 1} of {self.args.max_steps} "
                f"(learning rate {self._get_learning_rate():.3g}). "
                "Fix: lower lr, or look for invalid values in the model's weights"
            )

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model: every parameter that trains and every persistent buffer."""
        model: nn.Module = self.model  # type: ignore[assignment]
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad or n in self._initially_trained}
        state = model.state_dict(keep_vars=True)
        buffers = {n: b for n, b in model.named_buffers() if n in state}
        return trained | buffers

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: t.detach().cpu().clone() for n, t in self.checkpoint_tensors().items()}
        save_file(tensors, folder / TENSORS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_file(Path(resume_from_checkpoint) / TENSORS)
        current = self.checkpoint_tensors()
        wrong = sorted(n for n in saved.keys() | current.keys() if _shape(saved, n) != _shape(current, n))
        if wrong:
            raise ManticoreError(
                f"{self.stage}: {resume_from_checkpoint} is of another model: {wrong[0]} has shape "
                f"{_shape(saved, wrong[0])} there (expected {_shape(current, wrong[0])}). "
                "Fix: resume with the model that the run was started with, or choose another out"
            )
        with torch.no_grad():
            for name, tensor in saved.items():
                current[name].copy_(tensor)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, PARTIAL)) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        self._saving = True
        if self.is_fsdp_enabled:
            complete_state(self.optimizer)  # type: ignore[arg-type]
        try:
            super()._save_checkpoint(model, trial)
            staged = folder / PARTIAL / f"checkpoint-{self.state.global_step}"
            if self.args.should_save:
                write_json(staged / CLOCK, self.stopwatch.seconds)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(staged, folder, keep=_KEPT_CHECKPOINTS)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ManticoreError(
                f"{self.stage}: cannot write the checkpoint of step {self.state.global_step} to {folder} "
                f"({' '.join(str(error).split())}). Fix: free disk space or choose another out, then resume"
            ) from error
        finally:
            self._saving = False


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def with_length(settings: T, step_flops: int, *, stage: str) -> T:
    """Settings with the steps that they or their budget give, and the warm-up that is theirs.

    Args:
        settings: of a search or a fine-tuning.
        step_flops: what a step costs.
        stage: the verb that error messages begin with.

    Raises:
        ManticoreError: a budget below one step.
    """
    steps = settings.steps or settings.default_steps
    if settings.budget_flops is not None:
        steps = steps_within(settings.budget_flops, step_flops, stage=stage)
    warmup = default_warmup(steps) if settings.warmup_steps is None else settings.warmup_steps
    return settings.model_copy(update={"steps": steps, "budget_flops": None, "warmup_steps": warmup})


def training_arguments(
    folder: Path,
    settings: OneTraining,
    *,
    log_steps: int,
    saves: bool,
    seed: int,
    data_seed: int,
    bf16: bool,
    cpu: bool = False,
) -> TrainingArguments:
    """transformers' arguments with everything off that prints, reports or guesses.

    Args:
        folder: where checkpoints go.
        settings: with steps and warm-up (:func:`with_length`).
        log_steps: optimizer steps between logged rows.
        saves: whether checkpoints are written.
        seed: of dropout and everything else drawn during training.
        data_seed: of the order of the data.
        bf16: whether autocast is on.
        cpu: stay on the CPU where an accelerator is present.
    """
    steps = settings.steps or settings.default_steps
    args = TrainingArguments(
        output_dir=str(folder),
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        adam_epsilon=settings.adam_eps,
        max_steps=steps,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=scheduler_name(settings.schedule),
        warmup_steps=settings.warmup_steps or 0,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if saves else "no",
        save_steps=settings.save_steps or max(1, steps // _CHECKPOINTS_PER_RUN),
        # this class rotates after the renaming
        save_total_limit=None,
        seed=seed,
        data_seed=data_seed,
        bf16=bf16,
        # bfloat16 is refused unless the CPU is asked for by name
        use_cpu=cpu or not torch.accelerator.is_available(),
        # every step sees whole batches, so every step costs the same FLOPs
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        # branches of exactly zero weight are skipped, so what they hold gets no gradient
        ddp_find_unused_parameters=True,
        disable_tqdm=True,
        # trackers are added as callbacks
        report_to="none",
        project=PROJECT,
    )
    refuse_lost_processes(args.world_size)
    # several devices in one process would multiply the batch: more devices are torchrun's business
    args._n_gpu = min(args.n_gpu, 1)
    micro_batches = settings.accumulation * args.world_size
    if settings.batch_size % micro_batches:
        raise ManticoreError(
            f"batch_size: {settings.batch_size} cannot be cut into {micro_batches} equal parts "
            f"(accumulation={settings.accumulation}, {args.world_size} processes). Fix: choose a multiple"
        )
    args.per_device_train_batch_size = settings.batch_size // micro_batches
    return args


def default_warmup(steps: int) -> int:
    """A tenth of the steps, at least 10: AdamW's first steps are as long as the learning rate, whatever the gradient.

    A run of fewer steps than 10 ends below its learning rate. Measured in ``benchmarks/warmup.py``.
    """
    return max(10, -(-steps // 10))


def scheduler_name(schedule: str) -> str:
    """transformers' name of the schedule "constant", "linear" or "cosine"; all of them warm up first."""
    return "constant_with_warmup" if schedule == "constant" else schedule
