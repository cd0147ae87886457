"""Search: which component each block should use, learned on a task while the network learns it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from manticore.errors import ManticoreError, require_hybrid
from manticore.hybrid.discretize import best_path
from manticore.hybrid.generation import ComponentGenerationMixin
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.keywords import takes
from manticore.modes import kept_modes
from manticore.registry import resolve
from manticore.search.differentiable.joint import Order
from manticore.search.differentiable.methods import SearchMethod
from manticore.search.differentiable.mixture_log import LOGGED_WEIGHTS, MixtureWeightsCsv
from manticore.search.differentiable.trainer import MixturePlan, SearchTrainer
from manticore.seeding import derive_seed
from manticore.settings import METHOD_OPTIONS, Search
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


@takes(Search)
def search(
    hybrid: ManticorePreTrainedModel,
    task: str | Task,
    settings: Search,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    cpu: bool = False,
    progress: bool | Progress = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> SearchResult:
    """Learn a supernet's mixture weights on the training split of a task, together with the supernet.

    A task with a vocabulary of its own gives the components fresh embeddings and heads first, unless they have them
    already. A task with classes makes a classifier of the hybrid, which itself stays as it is. Arguments left at None
    take the default of the method (``manticore.search.differentiable.methods``). ``start`` may also be the mixture
    weights to start from, ``[N, K]``, or N component indices. Mixture weights are always in float32, and their
    gradient does not count in ``max_grad_norm``.

    Args:
        hybrid: a supernet; changed in place.
        task: a task, or the name of a registered one.
        settings: the options below in one object, which single ones change.
        seed: of the data order, dropout, samples and fresh parameters.
        out: folder for ``metrics.jsonl``, ``mixture_weights.csv`` and ``checkpoints/``; None writes nothing.
        resume: go on from the last complete checkpoint in ``out``, if there is one.
        cpu: stay on the CPU where an accelerator is present.
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
    if settings.start is None:
        hybrid.mixing.reset_mixture()
    elif not isinstance(settings.start, str):
        hybrid.set_mixture_weights(settings.start)
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
        rows = trainer.run()
    if settings.trainable == "lora":
        merge_lora(hybrid)
    return SearchResult(
        model=hybrid,
        weights=hybrid.mixture_weights,
        path=best_path(hybrid),
        history=[
            {"step": row["step"], "loss": row["loss"], "weights": row[LOGGED_WEIGHTS], "entropy": row["entropy"]}
            for row in rows
        ],
        steps=training.steps,
        tokens=training.steps * settings.batch_size * task.tokens_per_example,
        flops=training.steps * training.flops,
        seconds=trainer.stopwatch.seconds,
    )


def _method(settings: Search) -> Callable[[list[nn.Parameter], int, int], SearchMethod]:
    """A function of (parameters, seed, steps) that makes the method, with those of its options that are given.

    Raises:
        ManticoreError: an option that the method does not have.
    """
    kind = resolve("search", settings.method)
    accepted = inspect.signature(kind).parameters
    given = {}
    for shown, option in METHOD_OPTIONS.items():
        value = getattr(settings, shown)
        if value is not None and option not in accepted:
            raise ManticoreError(f"search: method {settings.method!r} has no {shown} (got {value}). Fix: leave it out")
        if value is not None:
            given[option] = value

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
