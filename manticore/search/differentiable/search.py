"""Mixture weights learned on a task by their gradients, while the network learns the task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from manticore.errors import ManticoreError
from manticore.hybrid.discretize import best_path
from manticore.hybrid.found import found_by
from manticore.hybrid.generation import ComponentGenerationMixin
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.modes import kept_modes
from manticore.registry import resolve
from manticore.search.differentiable.joint import Order
from manticore.search.differentiable.methods import SearchMethod
from manticore.search.differentiable.mixture_log import LOGGED_WEIGHTS, MixtureWeightsCsv
from manticore.search.differentiable.one_hot import OneHot, beside, one_hot_paths
from manticore.search.differentiable.trainer import MixturePlan, SearchTrainer
from manticore.search.result import SearchResult
from manticore.seeding import derive_seed
from manticore.settings import Search
from manticore.training.callbacks import Progress
from manticore.training.opening import opened
from manticore.training.precision import Precision
from manticore.training.prepare import fit_to_task, resolve_task
from manticore.training.tracking import trackers
from manticore.training.trainable import merge_lora, set_trainable
from manticore.training.trainer import scheduler_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.tasks.task import Task


def learn(
    hybrid: ManticorePreTrainedModel,
    task: str | Task,
    settings: Search,
    *,
    seed: int,
    out: str | Path | None,
    resume: bool,
    cpu: bool,
    progress: bool | Progress,
    tokenizer: PreTrainedTokenizerBase | None,
) -> SearchResult:
    """Learn mixture weights together with the supernet's own; arguments as in :func:`manticore.search`.

    Raises:
        ManticoreError: impossible arguments, a budget below one step, a loss or gradient that is not finite, a full
            disk.
    """
    settings = settings.model_copy(update={"warmup_steps": settings.warmup_steps or 0})
    parsed_order = Order(settings.order)
    make_method = _method(settings)

    told = trackers(settings.report_to, out, stage="search")
    task = resolve_task(task, hybrid, tokenizer, seed, stage="search")
    hybrid = cast(ManticorePreTrainedModel, fit_to_task(hybrid, task, seed))
    precision = Precision(hybrid, settings.dtype, bf16=settings.bf16, cpu=cpu, stage="search")
    set_trainable(
        hybrid,
        settings.trainable,
        fresh_vocabulary=task.vocab_size is not None,
        lora_rank=settings.lora_rank,
        seed=seed,
    )
    start: Any = settings.start
    if settings.weights_from is not None:
        if start is not None:
            raise ManticoreError("search: start and weights_from are both given. Fix: give one of them")
        start = found_by(settings.weights_from, "search").suits(hybrid.config, "search").start("search")
    if start is None:
        hybrid.mixing.reset_mixture()
    elif not isinstance(start, str):
        hybrid.set_mixture_weights(start)
    with ExitStack() as stack:
        if isinstance(hybrid, ComponentGenerationMixin):
            # last of all, when the mixture weights are numbers again
            stack.callback(hybrid.update_ends)
        stack.enter_context(kept_modes(hybrid))
        stack.enter_context(_learning(hybrid.mixing.mixture_parameters()))
        training = stack.enter_context(
            opened(
                hybrid,
                task,
                settings,
                precision,
                stage="search",
                draws="search",
                seed=seed,
                out=out,
                resume=resume,
                cpu=cpu,
                log_steps=1,
                key={"start": hybrid.mixture_weights.tolist()},
            )
        )
        trainer = SearchTrainer(
            hybrid,
            training.args,
            task,
            plan=MixturePlan(
                make_method=lambda parameters: make_method(parameters, derive_seed(seed, "mixture"), training.steps),
                order=parsed_order,
                schedule=scheduler_name(settings.mixture_schedule),
                warmup_steps=settings.mixture_warmup_steps,
                seed=seed,
            ),
            stage="search",
            checkpoint=training.checkpoint,
            decay=settings.decay,
            metrics_file=None if out is None else training.folder / "metrics.jsonl",
            callbacks=told
            if out is None
            else [*told, MixtureWeightsCsv(training.folder / "mixture_weights.csv", hybrid.config.num_components)],
            progress=progress,
        )
        # the trainer has put it where it computes
        scoring = OneHot(
            hybrid,
            task,
            batch_size=settings.batch_size,
            most=settings.validation_examples,
            training=training.steps * training.flops,
        )
        with precision.computing():
            before = scoring.scores(scoring.space.parents, 0)
        rows = trainer.run()
    if settings.trainable == "lora":
        merge_lora(hybrid)
    path = best_path(hybrid)
    after = scoring.scores(one_hot_paths(scoring.space, tuple(path)), training.steps)
    shared = beside(before, after)
    return SearchResult(
        model=hybrid,
        weights=hybrid.mixture_weights,
        path=path,
        history=[
            {"step": row["step"], "loss": row["loss"], "weights": row[LOGGED_WEIGHTS], "entropy": row["entropy"]}
            for row in rows
        ],
        steps=training.steps,
        tokens=training.steps * settings.batch_size * task.tokens_per_example,
        flops=training.steps * training.flops + sum(each.flops for each in shared),
        seconds=trainer.stopwatch.seconds,
        shared=shared,
        metric=task.primary_metric,
        higher_is_better=task.higher_is_better,
    )


def _method(settings: Search) -> Callable[[list[nn.Parameter], int, int], SearchMethod]:
    """A function of (parameters, seed, steps) that makes the method, with those of its options that are given."""
    kind = resolve("search", settings.method)
    accepted = inspect.signature(kind).parameters
    given = settings.method_options()

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
