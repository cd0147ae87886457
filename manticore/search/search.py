"""Search: which component each block of a hybrid should use, found on a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from manticore.errors import ManticoreError, require_hybrid
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.keywords import takes
from manticore.registry import resolve
from manticore.schema.options import foreign_options, trains_candidates
from manticore.search.candidates import find
from manticore.search.differentiable.search import learn
from manticore.search.result import SearchResult
from manticore.settings import Search
from manticore.training.callbacks import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.tasks.task import Task

__all__ = ["SearchResult", "search"]


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
    """Find the path, or the mixture weights, that suit a task best.

    By default paths are candidates: each is fine-tuned by itself on the training split, all are scored on the
    validation split at marks of equal compute, and the best goes on (``manticore.finetune(result, task)``). A **unit**
    is the FLOPs of one fine-tuning, ``finetune_flops``. ``darts``, ``dash`` and ``gaea`` learn mixture weights together
    with the supernet instead, in ``steps`` or ``budget_flops``, and show beside what they found how its one-hot paths
    score (``result.shared``); arguments left at None take the default of the method
    (``manticore.search.differentiable.methods``), ``start`` may also be the mixture weights to start from, ``[N, K]``,
    or N component indices, ``weights_from`` what another search returned, and mixture weights are always in float32,
    their gradient not in ``max_grad_norm``.

    A task with a vocabulary of its own gives the components fresh embeddings and heads first, unless they have them
    already. A task with classes makes a classifier of the hybrid, which itself stays as it is.

    Args:
        hybrid: a supernet; methods that learn weights train it in place.
        task: a task, or the name of a registered one.
        settings: the options below in one object, which single ones change.
        seed: of the data order, dropout, samples and fresh parameters.
        out: folder for candidates and their curves, or ``metrics.jsonl``, ``mixture_weights.csv`` and ``checkpoints/``;
            None writes nothing.
        resume: go on with what is complete in ``out``, if there is something.
        cpu: stay on the CPU where an accelerator is present.
        progress: True for a bar on the terminal, or a function of (step, steps, row).
        tokenizer: for tasks that read text; None takes the hybrid's.

    Raises:
        ManticoreError: impossible arguments, options of another method, a discretized hybrid, a budget below one step,
            a loss or gradient that is not finite, a full disk.
    """
    require_hybrid(hybrid, "search")
    if hybrid.is_discretized:
        raise ManticoreError(
            f"search: the hybrid is discretized to path {hybrid.config.path} and has nothing to choose from. "
            "Fix: search in the supernet that combine made"
        )
    # says who is to blame, where the method is somebody's plug-in
    resolve("search", settings.method)
    for text in foreign_options(settings).values():
        raise ManticoreError(f"search: {text}")
    run = find if trains_candidates(settings.method) else learn
    return run(
        hybrid,
        task,
        settings,
        seed=seed,
        out=out,
        resume=resume,
        cpu=cpu,
        progress=progress,
        tokenizer=tokenizer,
    )
