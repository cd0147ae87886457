"""Search: which component each block should use, learned on a task while the network learns it."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from manticore.errors import ManticoreError, require_hybrid
from manticore.hybrid.discretize import best_path
from manticore.hybrid.generation import ComponentGenerationMixin
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.kernels.mamba import fast_scan
from manticore.modes import kept_modes
from manticore.registry import resolve
from manticore.search.differentiable.joint import Order
from manticore.search.differentiable.methods import SearchMethod
from manticore.search.differentiable.mixture_log import LOGGED_WEIGHTS, MixtureWeightsCsv
from manticore.search.differentiable.trainer import MixturePlan, SearchTrainer
from manticore.seeding import derive_seed
from manticore.training.budget import flops_per_step, steps_within
from manticore.training.callbacks import Progress
from manticore.training.checkpoints import open_folder
from manticore.training.finetune import data_fingerprint, recomputed_activations
from manticore.training.precision import Precision
from manticore.training.prepare import check_numbers, fit_to_task, resolve_task
from manticore.training.tracking import trackers
from manticore.training.trainable import merge_lora, set_trainable
from manticore.training.trainer import scheduler_name, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.tasks.task import Task

DEFAULT_STEPS = 120
_CHECKPOINTS_PER_RUN = 10


@dataclass(frozen=True)
class SearchResult:
    """What a search found and what it took."""

    model: ManticorePreTrainedModel
    """The supernet that was given, trained in place, or for a task with classes the classifier made of it; it holds the
    weights found."""
    weights: Tensor
    """Mixture weights ``[N, K]``."""
    path: list[int]
    """The best component of each block, N indices."""
    history: list[dict[str, Any]]
    """Per step: ``step``; ``loss`` of its batch; ``weights`` ``[N][K]`` and their mean ``entropy`` in nats after it."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Input tokens seen."""
    flops: int
    """Training FLOPs, forward and backward."""
    seconds: float
    """Training time, earlier sessions of a resumed search included."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, as JSON values."""
        names = ("path", "history", "steps", "tokens", "flops", "seconds")
        return {name: getattr(self, name) for name in names} | {"weights": self.weights.tolist()}


def search(
    hybrid: ManticorePreTrainedModel,
    task: str | Task,
    *,
    method: str = "darts",
    order: str = "simultaneous",
    steps: int | None = None,
    budget_flops: int | None = None,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    decay: str = "maps",
    adam_betas: Sequence[float] = (0.9, 0.999),
    adam_eps: float = 1e-8,
    schedule: str = "constant",
    warmup_steps: int = 0,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
    mixture_lr: float | None = None,
    mixture_weight_decay: float | None = None,
    mixture_schedule: str = "constant",
    mixture_warmup_steps: int = 0,
    temperature: float | None = None,
    final_temperature: float | None = None,
    start: str | Tensor | Sequence[Sequence[float]] | Sequence[int] | None = None,
    start_floor: float | None = None,
    trainable: str = "all",
    lora_rank: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    save_steps: int | None = None,
    gradient_checkpointing: bool = False,
    dtype: str = "auto",
    bf16: bool = False,
    cpu: bool = False,
    report_to: str | Sequence[str] | None = None,
    progress: bool | Progress = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> SearchResult:
    """Learn a supernet's mixture weights on the training split of a task, together with the supernet.

    A task with a vocabulary of its own gives the components fresh embeddings and heads first, unless they have them
    already. A task with classes makes a classifier of the hybrid, which itself stays as it is. Arguments left at None
    take the default of the method (``manticore.search.differentiable.methods``).

    Args:
        hybrid: a supernet; changed in place.
        task: a task, or the name of a registered one.
        method: ``"darts"``, ``"dash"`` or ``"gaea"``.
        order: ``"simultaneous"``; ``"alternating"``: odd steps train the network, even steps the mixture weights;
            ``"bilevel"``: so too, the even steps on a half of the training data that the network never sees.
        steps: optimizer steps; without ``steps`` and ``budget_flops``, 120.
        budget_flops: training FLOPs; as many whole steps are made as they pay for.
        batch_size: examples per step.
        lr: learning rate of the network.
        weight_decay: of the network.
        decay: what it falls on, as in :func:`manticore.finetune`.
        adam_betas: of the network's AdamW.
        adam_eps: of the network's AdamW.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``, after ``warmup_steps`` of linear warm-up.
        accumulation: micro-batches that one step is cut into.
        max_grad_norm: bound on the norm of the network's gradient, 0 for none; the mixture weights' does not count.
        mixture_lr: learning rate of the mixture weights.
        mixture_weight_decay: of the logits, where the method has logits.
        mixture_schedule: as ``schedule``, for the mixture weights.
        mixture_warmup_steps: as ``warmup_steps``, for the mixture weights.
        temperature: ``dash``: of the first sample.
        final_temperature: ``dash``: of the last sample.
        start: mixture weights to start from, ``[N, K]`` or N component indices; ``"current"`` keeps those of the
            hybrid; None takes the mixing's own start (equal weights; the identity where routed).
        start_floor: smallest probability of the start.
        trainable: what learns beside the mixture weights: ``"all"``, ``"frozen"``, ``"projectors"`` or ``"lora"``.
        lora_rank: rank of the low-rank updates.
        seed: of the data order, dropout, samples and fresh parameters.
        out: folder for ``metrics.jsonl``, ``mixture_weights.csv`` and ``checkpoints/``; None writes nothing.
        resume: go on from the last complete checkpoint in ``out``, if there is one.
        save_steps: steps between checkpoints; None: ten per search.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more FLOPs.
        dtype: as in :func:`manticore.finetune`; mixture weights are always in float32.
        bf16: compute in bfloat16 where that is safe (autocast), on every device.
        cpu: stay on the CPU where an accelerator is present.
        report_to: experiment trackers told every logged row, by transformers' names (``"tensorboard"``, …).
        progress: True for a bar on the terminal, or a function of (step, steps, row).
        tokenizer: for tasks that read text; None takes the hybrid's.

    Raises:
        ManticoreError: impossible arguments, a discretized hybrid, a budget below one step, a loss or gradient that
            is not finite, a full disk.
    """
    require_hybrid(hybrid, "search")
    if hybrid.is_discretized:
        raise ManticoreError(
            f"search: the hybrid is discretized to path {hybrid.config.path} and has nothing to choose from. "
            "Fix: search in the supernet that combine made"
        )
    if steps is not None and budget_flops is not None:
        raise ManticoreError("search: steps and budget_flops are both given. Fix: give one of them")
    check_numbers(
        "search",
        counts={"steps": steps, "batch_size": batch_size, "accumulation": accumulation, "save_steps": save_steps},
        rates={"lr": lr, "mixture_lr": mixture_lr},
    )
    if isinstance(start, str) and start != "current":
        raise ManticoreError(f"search: start is {start!r} (expected weights or 'current'). Fix: start='current'")
    parsed_order = Order.parse(order)
    make_method = _method(
        method,
        lr=mixture_lr,
        weight_decay=mixture_weight_decay,
        temperature=temperature,
        final_temperature=final_temperature,
        start_floor=start_floor,
    )

    told = trackers(report_to, out, stage="search")
    task = resolve_task(task, hybrid, tokenizer, seed, stage="search")
    hybrid = cast(ManticorePreTrainedModel, fit_to_task(hybrid, task, seed))
    precision = Precision(hybrid, dtype, bf16=bf16, cpu=cpu, stage="search")
    set_trainable(hybrid, trainable, fresh_vocabulary=task.vocab_size is not None, lora_rank=lora_rank, seed=seed)
    if start is None:
        hybrid.mixing.reset_mixture()
    elif not isinstance(start, str):
        hybrid.set_mixture_weights(start)
    with ExitStack() as stack:
        if isinstance(hybrid, ComponentGenerationMixin):
            # last of all, when the mixture weights are numbers again
            stack.callback(hybrid.update_ends)
        stack.enter_context(kept_modes(hybrid))
        stack.enter_context(fast_scan(hybrid))
        stack.enter_context(_learning(hybrid.mixing.mixture_parameters()))
        stack.callback(precision.settle)
        precision.warn()
        precision.hold()
        if gradient_checkpointing:
            stack.enter_context(recomputed_activations(hybrid))
        flops = flops_per_step(hybrid, batch_size, task.length)
        if budget_flops is not None:
            steps = steps_within(budget_flops, flops, stage="search")
        steps = steps or DEFAULT_STEPS
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = None
        if out is not None:
            settings = {
                "task": task.name,
                "data": data_fingerprint(task),
                "method": method,
                "order": order,
                "steps": steps,
                "batch_size": batch_size,
                "lr": lr,
                "weight_decay": weight_decay,
                "decay": decay,
                "adam_betas": list(adam_betas),
                "adam_eps": adam_eps,
                "schedule": schedule,
                "warmup_steps": warmup_steps,
                "accumulation": accumulation,
                "max_grad_norm": max_grad_norm,
                "mixture_lr": mixture_lr,
                "mixture_weight_decay": mixture_weight_decay,
                "mixture_schedule": mixture_schedule,
                "mixture_warmup_steps": mixture_warmup_steps,
                "temperature": temperature,
                "final_temperature": final_temperature,
                "start": hybrid.mixture_weights.tolist(),
                "start_floor": start_floor,
                "trainable": trainable,
                "lora_rank": lora_rank,
                "seed": seed,
                "dtype": dtype,
                "bf16": precision.autocast,
            }
            checkpoint = open_folder(folder / "checkpoints", settings, resume=resume, stage="search")
        args = training_arguments(
            folder / "checkpoints",
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            adam_betas=adam_betas,
            adam_eps=adam_eps,
            schedule=schedule,
            warmup_steps=warmup_steps,
            accumulation=accumulation,
            max_grad_norm=max_grad_norm,
            log_steps=1,
            save_steps=None if out is None else save_steps or max(1, steps // _CHECKPOINTS_PER_RUN),
            seed=derive_seed(seed, "search"),
            data_seed=derive_seed(seed, "data order"),
            bf16=precision.autocast,
            cpu=cpu,
        )
        trainer = SearchTrainer(
            hybrid,
            args,
            task,
            plan=MixturePlan(
                make_method=lambda parameters: make_method(parameters, derive_seed(seed, "mixture"), steps),
                order=parsed_order,
                schedule=scheduler_name(mixture_schedule),
                warmup_steps=mixture_warmup_steps,
                seed=seed,
            ),
            stage="search",
            checkpoint=checkpoint,
            decay=decay,
            metrics_file=None if out is None else folder / "metrics.jsonl",
            callbacks=told
            if out is None
            else [*told, MixtureWeightsCsv(folder / "mixture_weights.csv", hybrid.config.num_components)],
            progress=progress,
        )
        rows = trainer.run()
    if trainable == "lora":
        merge_lora(hybrid)
    return SearchResult(
        model=hybrid,
        weights=hybrid.mixture_weights,
        path=best_path(hybrid),
        history=[
            {"step": row["step"], "loss": row["loss"], "weights": row[LOGGED_WEIGHTS], "entropy": row["entropy"]}
            for row in rows
        ],
        steps=steps,
        tokens=steps * batch_size * task.tokens_per_example,
        flops=steps * flops,
        seconds=trainer.stopwatch.seconds,
    )


def _method(name: str, **options: Any) -> Callable[[list[nn.Parameter], int, int], SearchMethod]:
    """A function of (parameters, seed, steps) that makes the method, with those of ``options`` that are not None.

    Raises:
        ManticoreError: no such method, or an option that it does not have.
    """
    kind = resolve("search", name)
    accepted = inspect.signature(kind).parameters
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in accepted:
            shown = f"mixture_{option}" if option in ("lr", "weight_decay") else option
            raise ManticoreError(f"search: method {name!r} has no {shown} (got {given[option]}). Fix: leave it out")

    def make(parameters: list[nn.Parameter], seed: int, steps: int) -> SearchMethod:
        known = {"seed": seed, "anneal_steps": steps}
        return kind(parameters, **given, **{option: known[option] for option in known if option in accepted})

    return make


@contextmanager
def _learning(mixture: list[nn.Parameter]) -> Iterator[None]:
    """Mixture weights receive gradients inside, and only there."""
    for parameter in mixture:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in mixture:
            parameter.requires_grad_(False)
            parameter.grad = None
