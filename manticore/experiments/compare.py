"""Compare models at equal compute: each is fine-tuned on the same data with the same number of training FLOPs.

Two kinds of budgets are compared. "Fine-tuning alone": every model gets the same FLOPs from where it stands.
"Everything the hybrid cost": what was spent before on a model (aligning and searching the hybrid) is taken off its
share, so that parents train for as much longer. Of each kind there may be several, down to none at all. Every (model,
budget, learning rate, seed) is one run whose result is kept, so that a comparison that was killed goes on where it
stopped; at a constant rate a run goes on from where that to the next smaller budget has ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from manticore.components.checkpoint_folder import dequantized
from manticore.errors import ManticoreError
from manticore.experiments.budgets import Budget, budgets_of
from manticore.experiments.comparison_runs import ComparisonRuns
from manticore.experiments.comparison_writing import WritingRow, Writings
from manticore.experiments.generating import LENGTHS
from manticore.experiments.intervals import mean_interval
from manticore.experiments.models import (
    Source,
    add_ensembles,
    add_larger,
    named,
    own_tasks,
    plain_models,
    pretrained_with,
    quantization,
    reads_text,
    source_digest,
)
from manticore.experiments.rows import ensembles
from manticore.experiments.side_by_side import useful_workers
from manticore.keywords import takes
from manticore.runs.ledger import RUNS, RunLog
from manticore.runs.lineage import task_inputs
from manticore.settings import Compare, Finetune

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.tasks.task import Task

DEFAULT_STEPS = Finetune.default_steps


@dataclass(frozen=True)
class ComparisonRow:
    """One model at one budget."""

    model: str
    budget: int
    """Index into :attr:`Comparison.budgets`."""
    parameters: int
    flops_per_token: float
    """Forward, averaged over an example."""
    cache_bytes_per_token: int
    state_bytes: int
    seeds: list[dict[str, Any]]
    """Per seed: ``seed``, ``lr`` (None before any training), ``steps``, ``flops`` (those spent before included),
    ``seconds``, test ``metrics`` and ``metrics_float32``, as fine-tuning gives them."""
    mean: float
    """Of the primary metric over seeds."""
    interval: tuple[float, float] | None
    """95 % confidence interval of the mean; None for a single seed."""
    diverged: list[float]
    """Learning rates with which a training of this model ended in NaN or infinity."""
    step_flops: int
    """Training FLOPs of one step: no run can come nearer to its budget; 0 before any training."""
    rates: list[float]
    """Learning rates that were tried; none before any training."""


@dataclass(frozen=True)
class UntrainedRow:
    """A parent as it was downloaded, or an ensemble of them, scored before any training."""

    model: str
    metrics: dict[str, float]
    """Empty where there is no score."""
    left_out: str
    """Why there is none."""


@dataclass(frozen=True)
class Comparison:
    """Models fine-tuned at equal compute."""

    task: str
    primary_metric: str
    higher_is_better: bool
    budgets: list[Budget]
    rows: list[ComparisonRow]
    untrained: list[UntrainedRow]
    """The models that are not hybrids and were given as models or folders, as they were; on text also ensembles."""
    notes: list[str]
    """Sentences that the table cannot be read without."""
    writing: list[WritingRow]
    """What the models write by themselves, where that was asked for."""

    @property
    def main_budget(self) -> int:
        """Index of the budget of fine-tuning alone; where that is not among them, of the largest of its kind."""
        alone = [index for index, budget in enumerate(self.budgets) if not budget.with_spent]
        return next((index for index in alone if self.budgets[index].share == 1), alone[-1])

    def row(self, model: str, budget: int = 0) -> ComparisonRow:
        """The row of a model at a budget."""
        return next(row for row in self.rows if (row.model, row.budget) == (model, budget))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@takes(Compare)
def compare(
    models: Mapping[str, Source] | Sequence[Source],
    task: str | Task,
    settings: Compare,
    *,
    spent_flops: Mapping[str, int] | None = None,
    cpu: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool | Callable[[int, int, str], None] = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Comparison:
    """Fine-tune every model with the same FLOPs, data, seeds and learning rates; none of the given ones is changed.

    With more than one learning rate, each model at each budget uses the one that scores best on the validation split
    with the first seed; a rate that diverges with any seed counts as the worst.

    At a constant learning rate the run to the largest budget passes all others: its numbers there are those of a run
    that ends there. A warm-up that is left open is therefore that of the smallest budget, for all of them. With another
    schedule each budget takes runs of its own. With several workers, many cores do more than as threads of one run;
    where there is an accelerator, runs go one after another.

    Args:
        models: name → model, or models alone; folders and hub ids are loaded, a function gets the seed. In a list,
            ``"name=folder"`` gives a name. Where their tokenizers differ and `task` is a name, each reads the text with
            its own, and bits per byte decide.
        task: a task, or the name of a registered one.
        settings: the options below in one object, which single ones change.
        spent_flops: name → training FLOPs spent on that model before (align, search). Where given, each budget is
            there twice, the second time counting them: the largest of them on top of it, for every model.
        cpu: stay on the CPU where an accelerator is present.
        out: folder for results and checkpoints, from which a killed comparison resumes.
        resume: go on with the results in `out`, if there are any.
        progress: True for a bar over runs, or a function of (runs done, runs in all, what runs next; with several
            workers, what has ended last).
        tokenizer: for tasks that read text; None takes that of the first model that has one.

    Raises:
        ManticoreError: no models or seeds, an unknown name in `spent_flops`, a budget below one step, other settings
            than those of the comparison in `out`, a model that diverges with every learning rate.
    """
    sources = named(models)
    spent = dict(spent_flops or {})
    for name in spent:
        if name not in sources:
            raise ManticoreError(
                f"compare: spent_flops names {name!r} (the models are {', '.join(sources)}). Fix: use their names"
            )
    parents = plain_models(sources)
    larger = add_larger(sources, settings.larger)
    tasks, differ = own_tasks(task, sources, tokenizer)
    task, notes, added = next(iter(tasks.values())), [], []
    if differ:
        notes.append(
            "Tokenizers differ: each model reads the text with its own, bits per byte decide, and losses per token do "
            "not compare. There is no ensemble."
        )
    else:
        added = add_ensembles(sources, parents, task, ensembles(settings.ensemble, of_text=reads_text(task)))
    folder = None if out is None else Path(out)
    log = RunLog(None, {}, resume=resume, stage="compare")
    if folder is not None:
        inputs = task_inputs(task)
        inputs |= {f"data of {n}": task_inputs(each)["data"] for n, each in tasks.items() if each is not task}
        # what a function makes is the business of its author
        inputs |= {f"weights of {n}": d for n, source in sources.items() if (d := source_digest(source)) is not None}
        log = RunLog(folder / RUNS, settings.key(task=task.name), inputs, resume=resume, stage="compare")
    processes = useful_workers(settings.workers, cpu=cpu)
    runs = ComparisonRuns(sources, task, tasks, settings, folder, log, processes, cpu)
    writings = Writings(runs, settings.lengths or LENGTHS, tokenizer) if settings.generate else None
    if settings.budget_flops is None:
        budget_flops = DEFAULT_STEPS * max(runs.step_flops(name) for name in sources if name not in larger)
    else:
        budget_flops = int(settings.budget_flops)
    budgets = budgets_of(settings.budgets, budget_flops, max(spent.values(), default=0))
    shares = [
        (name, index, budget, spent.get(name, 0) if budget.with_spent else 0)
        for index, budget in enumerate(budgets)
        for name in sources
    ]
    runs.trainings = list(dict.fromkeys((name, budget.flops - cost) for name, _, budget, cost in shares))
    downloaded = [*parents, *larger, *(added if reads_text(task) else ())]
    writing: list[WritingRow] = []
    with ExitStack() as stack:
        to_write = [] if writings is None else writings.wanted(downloaded, budgets, stack)
        runs.report = stack.enter_context(_watched(progress, runs.total + len(to_write)))
        runs.make()
        rows = [_row(runs, *share) for share in shares]
        untrained = [UntrainedRow(name, **runs.untrained(name)) for name in downloaded]
        if writings is not None:
            writing = list(writings.rows(to_write))
    notes += [pretrained_with(name, source, parents) for name, source in larger.items()]
    notes += [dequantized(name, kind) for name, each in (parents | larger).items() if (kind := quantization(each))]
    return Comparison(
        task.name,
        task.primary_metric,
        task.higher_is_better,
        budgets,
        rows,
        untrained,
        list(filter(None, notes)),
        writing,
    )


def _row(runs: ComparisonRuns, name: str, index: int, budget: Budget, spent: int) -> ComparisonRow:
    results, diverged = runs.of(name, budget.flops - spent)
    seeds = [
        {"seed": seed, "flops": result["flops"] + spent}
        | {key: result[key] for key in ("lr", "steps", "seconds", "metrics", "metrics_float32")}
        for seed, result in results.items()
    ]
    mean, interval = mean_interval([entry["metrics"][runs.task.primary_metric] for entry in seeds])
    facts = next(iter(results.values()))
    # a run that trains without a step raises
    step = facts["flops"] // facts["steps"] if facts["steps"] else 0
    return ComparisonRow(
        model=name,
        budget=index,
        parameters=facts["parameters"],
        flops_per_token=facts["flops_per_token"],
        cache_bytes_per_token=facts["cache_bytes_per_token"],
        state_bytes=facts["state_bytes"],
        seeds=seeds,
        mean=mean,
        interval=interval,
        diverged=diverged,
        step_flops=step,
        rates=list(runs.learning_rates) if step else [],
    )


@contextmanager
def _watched(progress: bool | Callable[[int, int, str], None], runs: int) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each run before it starts."""
    started = itertools.count()
    if callable(progress):
        yield lambda name: progress(next(started), runs, name)
        return
    with tqdm(total=runs, desc="compare", unit="run", disable=not progress) as bar:

        def show(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update(next(started) - bar.n)

        yield show
        bar.update(runs - bar.n)
