"""A search over candidates, from the hybrid to the winner: what :func:`manticore.search` does by default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as Folder
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from tqdm.auto import tqdm

from manticore.errors import ManticoreError, NotFiniteError
from manticore.experiments.side_by_side import useful_workers
from manticore.hybrid.discretize import discretize
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.processes import process_count
from manticore.registry import resolve
from manticore.runs.ledger import INPUTS, read_record, write_record
from manticore.search.choice import Choice, PathMethod
from manticore.search.constraints import constrained
from manticore.search.cost_table import TIMES, cost_table
from manticore.search.costs import CostTable
from manticore.search.curves import MARKS, UNTRAINED, Curves, SharedScores
from manticore.search.forecast import forecast
from manticore.search.objective import Objective, place, tuning, unit_flops
from manticore.search.result import Candidate, SearchResult
from manticore.search.storage import Connection
from manticore.search.study import Study, Told
from manticore.settings import Search
from manticore.training.begun import Begun
from manticore.training.callbacks import Progress
from manticore.training.checkpoints import checkpoints
from manticore.training.prepare import fit_to_task, resolve_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.tasks.task import Task

COSTS = "costs.json"
"""What paths cost, in the search's folder."""


def recorded_table(
    supernet: ManticorePreTrainedModel, settings: Search, inputs: Mapping[str, str], place: Folder
) -> CostTable:
    """What a supernet's paths cost; where this search has measured it before, as it was then, so that it decides alike.

    Args:
        supernet: fitted to the task.
        settings: with limits and workload.
        inputs: digests of what is searched.
        place: the file that it is noted in.
    """
    known = read_record(place, "remove it, and what paths cost is measured again")
    if known is not None and known[INPUTS] == inputs:
        table = CostTable.read(known)
        if settings.workload in (None, str(table.workload)) and settings.max.keys() <= table.costs.keys():
            return table
    return cost_table(supernet, settings.workload, settings.max)


def find(
    hybrid: ManticorePreTrainedModel,
    task: str | Task,
    settings: Search,
    *,
    seed: int,
    out: str | Folder | None,
    resume: bool,
    cpu: bool,
    progress: bool | Progress,
    tokenizer: PreTrainedTokenizerBase | None,
) -> SearchResult:
    """Train paths, score them at common marks, choose one; arguments as in :func:`manticore.search`.

    Raises:
        ManticoreError: impossible arguments, a unit of too few steps, no candidate that trains, a full disk.
    """
    _refuse_workers(settings, out, cpu=cpu)
    task = resolve_task(task, hybrid, tokenizer, seed, stage="search")
    supernet = cast(ManticorePreTrainedModel, fit_to_task(hybrid, task, seed))
    kept = TemporaryDirectory() if out is None else None
    folder = Folder(kept.name) if kept is not None else Folder(cast(str, out))
    unit, trains = unit_flops(supernet, task, tuning(settings), settings.finetune_flops)
    objective = Objective(
        supernet, task, trains, unit, folder, seed=seed, examples=settings.validation_examples, cpu=cpu
    )
    inputs = objective.inputs
    # in the key, since losers are thrown away, and other limits may choose one of them
    costs = recorded_table(supernet, settings, inputs, folder / COSTS)
    most = costs.in_numbers(settings.max)
    limits = {"max": most, "workload": str(costs.workload)} if most else {}
    names = [config.model_type for config in supernet.config.components]
    space = constrained(objective.space, costs, most, names)
    curves = Curves(space, task.higher_is_better, objective.marks)
    method: PathMethod = resolve("search", settings.method)
    alone = kept is not None and settings.workers == 1
    key = trains.key(task=task.name, seed=seed, unit=unit, examples=objective.examples)
    study = Study(
        objective,
        curves,
        Connection(settings.storage, None if alone else folder, settings.study_name),
        settings={**key, "blocks": objective.space.num_blocks, "components": objective.space.num_components, **limits},
        inputs=inputs,
        joins=resume or settings.storage is not None,
        workers=settings.workers,
        told=_watching(progress, method, objective, curves, settings.method_options()),
    )
    write_record(folder / COSTS, {INPUTS: inputs, **costs.to_dict()})
    choice = study.run(method(curves, seed, **settings.method_options()))
    if choice.path in curves.failed:
        within = " within the limits" if most else ""
        raise NotFiniteError(f"search: every candidate{within} failed; the last one {curves.failed[choice.path]}")
    for path in curves.points:
        if path != choice.path:
            objective.discard(path)
    study.tidy()
    return replace(_result(objective, curves, choice, kept), costs=costs, limits=most)


def _refuse_workers(settings: Search, out: str | Folder | None, *, cpu: bool) -> None:
    if process_count() > 1:
        raise ManticoreError(
            f"search: method {settings.method!r} trains each candidate in one process (got {process_count()}). "
            "Fix: --workers instead of --processes, or a method that learns mixture weights (--method darts)"
        )
    if settings.storage is not None and out is None:
        raise ManticoreError("search: a storage needs an out, for candidates' checkpoints. Fix: out=FOLDER")
    timed = sorted(TIMES.keys() & settings.max.keys())
    if settings.storage is not None and timed:
        raise ManticoreError(
            f"search: a limit on {timed[0]} is measured, and the machines that share a storage would each measure "
            "another. Fix: limit what is counted, such as flops_per_token, or leave storage out"
        )
    if settings.workers > 1 and useful_workers(settings.workers, cpu=cpu) == 1:
        raise ManticoreError(
            f"search: workers is {settings.workers}, but these are processes of one CPU on Linux. Fix: leave it out; "
            "for one worker per accelerator start the command once for each (CUDA_VISIBLE_DEVICES=0 manticore …), "
            "all with the same --storage sqlite:///FILE and the same -o"
        )


def _result(objective: Objective, curves: Curves, choice: Choice, kept: TemporaryDirectory[str] | None) -> SearchResult:
    candidates = [
        Candidate(list(path), list(curve.values()), curves.failed.get(path, ""), path == choice.path)
        for path, curve in curves.points.items()
    ]
    has_trained = choice.mark != UNTRAINED
    if has_trained and not checkpoints(place(objective.folder, choice.path)):
        # thrown away as a loser of another method, or by a search that was killed at its end
        objective.advance(choice.path, choice.mark)
    model = objective.trained(choice.path) if has_trained else discretize(objective.supernet, choice.path)
    trained = [each.points[-1] for each in candidates if each.points]
    shared = curves.shared or SharedScores({}, 0)
    steps = sum(point.steps for point in trained) + shared.steps
    space, batch = objective.space, objective.settings.batch_size
    # low-rank updates are part of the weights by now, and would be counted twice
    goes_on = has_trained and objective.settings.trainable != "lora"
    return SearchResult(
        model=model,
        weights=torch.nn.functional.one_hot(torch.tensor(choice.path), space.num_components).float(),
        path=list(choice.path),
        history=[],
        steps=steps,
        tokens=steps * batch * objective.task.tokens_per_example,
        flops=curves.flops,
        seconds=sum(point.seconds for point in trained) + shared.seconds,
        candidates=candidates,
        shared=[Candidate(list(path), [point]) for path, point in shared.points.items()],
        unit_flops=objective.unit,
        trained_flops=curves.points[choice.path][choice.mark].flops,
        reason=choice.reason,
        metric=objective.task.primary_metric,
        higher_is_better=curves.higher_is_better,
        begun=Begun(model, place(objective.folder, choice.path)) if goes_on else None,
        kept=kept,
    )


def _watching(
    progress: bool | Progress, method: PathMethod, objective: Objective, curves: Curves, options: dict[str, Any]
) -> Told | None:
    """What is told after every evaluation: marks that candidates have trained to, of those that may be needed."""
    if not progress:
        return None
    dearest = forecast(method, curves.space, objective.marks, objective.seed, **options)[-1]
    shared = 0.0 if dearest.shared is None else dearest.shared.units
    # a candidate that is looked at untrained counts as one mark
    at_most = sum(max(1, marks[-1]) for marks in dearest.marks.values()) + round(MARKS * shared)

    def tell(what: str) -> None:
        marks = sum(max(1, *curve) for curve in curves.points.values() if curve)
        if curves.shared is not None:
            marks += round(MARKS * curves.shared.flops / objective.unit)
        leading = min((curve[max(curve)].loss for curve in curves.points.values() if curve), default=math.nan)
        if callable(progress):
            progress(marks, max(marks, at_most), {"loss": leading})
        else:
            bar.set_postfix_str(f"{what}, best loss {leading:.3f}")
            bar.update(marks - bar.n)

    bar = tqdm(total=at_most, desc="search", unit="mark", disable=callable(progress))
    return tell
