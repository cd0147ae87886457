"""Compare models at equal compute: each is fine-tuned on the same data with the same number of training FLOPs.

Two budgets are compared. "Fine-tuning alone": every model gets the same FLOPs from where it stands. "Everything the
hybrid cost": what was spent before on a model (aligning and searching the hybrid) is taken off its share, so that
parents train for as much longer. Every (model, budget, learning rate, seed) is one run whose result is kept, so that
a comparison that was killed goes on where it stopped.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from manticore.errors import ManticoreError, NotFiniteError
from manticore.kernels.mamba import use_selective_scan
from manticore.training.budget import cache_cost, count_parameters, flops_per_step, flops_per_token_forward
from manticore.training.contestants import Source, add_ensemble, build, named, shared_task, weights_fingerprint
from manticore.training.finetune import DEFAULT_STEPS, data_fingerprint, evaluate, finetune
from manticore.training.intervals import mean_interval
from manticore.training.prepare import check_backbone, check_length, check_numbers, take_vocabulary
from manticore.training.trainable import set_trainable
from manticore.training.units import UnitLog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.tasks.task import Task

logger = logging.getLogger(__name__)

MISMATCH = 0.05
"""Share of a budget by which a run may miss it before it is flagged."""


@dataclass(frozen=True)
class Budget:
    """Training FLOPs that every model of a table may spend."""

    name: str
    flops: int


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
    """Per seed: ``seed``, ``lr``, ``steps``, ``flops`` (those spent before included), ``seconds``, test ``metrics``."""
    mean: float
    """Of the primary metric over seeds."""
    interval: tuple[float, float] | None
    """95 % confidence interval of the mean; None for a single seed."""
    mismatch: bool
    """Whether a run missed the budget by more than 5 %."""
    diverged: list[float]
    """Learning rates with which a training of this model ended in NaN or infinity."""


@dataclass(frozen=True)
class Comparison:
    """Models fine-tuned at equal compute."""

    task: str
    primary_metric: str
    higher_is_better: bool
    budgets: list[Budget]
    rows: list[ComparisonRow]

    def row(self, model: str, budget: int = 0) -> ComparisonRow:
        """The row of a model at a budget."""
        return next(row for row in self.rows if (row.model, row.budget) == (model, budget))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare(
    models: Mapping[str, Source] | Sequence[Source],
    task: str | Task,
    *,
    budget_flops: int | None = None,
    spent_flops: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    learning_rates: Sequence[float] = (1e-3,),
    ensemble: bool = True,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    schedule: str = "constant",
    warmup_steps: int = 0,
    trainable: str = "all",
    lora_rank: int = 8,
    gradient_checkpointing: bool = False,
    bf16: bool = False,
    cpu: bool = False,
    test_examples: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool | Callable[[int, int, str], None] = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Comparison:
    """Fine-tune every model with the same FLOPs, data, seeds and learning rates; none of the given ones is changed.

    Args:
        models: name → model, or models alone; folders and hub ids are loaded, a function gets the seed.
        task: a task, or the name of a registered one.
        budget_flops: training FLOPs of fine-tuning; None: what 300 steps of the costliest model take.
        spent_flops: name → training FLOPs spent on that model before (align, search). Where given, a second budget
            counts them: the largest of them on top of `budget_flops`, for every model.
        seeds: of data order, dropout and fresh parameters; three or more show a spread worth the name.
        learning_rates: with more than one, each model at each budget uses the one that scores best on the
            validation split with the first seed. A rate that diverges with any seed counts as the worst.
        ensemble: add the average of the logits of all models that are no hybrids, where two or more are given as
            models or folders.
        batch_size, weight_decay, schedule, warmup_steps, trainable, lora_rank, gradient_checkpointing, bf16, cpu:
            as in :func:`manticore.finetune`, the same for all.
        test_examples: score only so many examples of the test split (and of the validation split).
        out: folder for results and checkpoints, from which a killed comparison resumes.
        resume: go on with the results in `out`, if there are any.
        progress: True for a bar over runs, or a function of (runs done, runs in all, what runs next).
        tokenizer: for tasks that read text; None takes that of the first model that has one.

    Raises:
        ManticoreError: no models or seeds, an unknown name in `spent_flops`, a budget below one step, other settings
            than those of the comparison in `out`, a model that diverges with every learning rate.
    """
    sources = named(models)
    spent = dict(spent_flops or {})
    for name in spent:
        if name not in sources:
            raise ManticoreError(f"compare: spent_flops names {name!r} (the models are {', '.join(sources)})")
    if not seeds or not learning_rates:
        raise ManticoreError("compare: seeds or learning_rates is empty. Fix: seeds=[0, 1, 2], learning_rates=[1e-3]")
    for lr in learning_rates:
        check_numbers("compare", counts={"batch_size": batch_size, "test_examples": test_examples}, rates={"lr": lr})
    if len(set(seeds)) < len(seeds):
        raise ManticoreError(f"compare: seeds {list(seeds)} hold one twice. Fix: give different seeds")
    task = shared_task(task, sources, tokenizer)
    if ensemble:
        add_ensemble(sources, task)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "trainable": trainable,
        "lora_rank": lora_rank,
        "gradient_checkpointing": gradient_checkpointing,
        "bf16": bf16,
        "test_examples": test_examples,
    }
    settings = {
        **options,
        # how a rate was chosen is part of a result
        "learning_rates": list(learning_rates),
        "task": task.name,
        "data": data_fingerprint(task),
        **{f"weights of {name}": weights_fingerprint(source) for name, source in sources.items()},
    }
    folder = None if out is None else Path(out)
    log = UnitLog(None if folder is None else folder / "units.jsonl", settings, resume=resume, stage="compare")
    runs = _Runs(sources, task, options | {"cpu": cpu}, list(seeds), list(learning_rates), folder, log)
    if budget_flops is None:
        budget_flops = DEFAULT_STEPS * max(runs.step_flops(name) for name in sources)
    budgets = [Budget("fine-tuning alone", budget_flops)]
    if any(spent.values()):
        budgets.append(Budget("everything the hybrid cost", budget_flops + max(spent.values())))
    with _watched(progress, len(budgets) * len(sources) * runs.per_row) as runs.report:
        rows = [
            _row(runs, name, index, budget, spent.get(name, 0) if index else 0)
            for index, budget in enumerate(budgets)
            for name in sources
        ]
    return Comparison(task.name, task.primary_metric, task.higher_is_better, budgets, rows)


def _row(runs: _Runs, name: str, index: int, budget: Budget, spent: int) -> ComparisonRow:
    results, diverged = runs.of(name, budget.flops - spent)
    seeds = [
        {"seed": seed, "flops": result["flops"] + spent}
        | {key: result[key] for key in ("lr", "steps", "seconds", "metrics")}
        for seed, result in results.items()
    ]
    mean, interval = mean_interval([entry["metrics"][runs.task.primary_metric] for entry in seeds])
    facts = next(iter(results.values()))
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
        mismatch=any(abs(entry["flops"] - budget.flops) > MISMATCH * budget.flops for entry in seeds),
        diverged=diverged,
    )


@dataclass
class _Runs:
    """Makes the runs of a comparison, or finds their results."""

    sources: Mapping[str, Source]
    task: Task
    options: Mapping[str, Any]
    seeds: list[int]
    learning_rates: list[float]
    folder: Path | None
    log: UnitLog
    report: Callable[[str], None] = field(default=lambda unit: None)
    """Called with the name of each run before it starts."""

    @property
    def per_row(self) -> int:
        """Runs that a row of the table takes."""
        return len(self.seeds) + len(self.learning_rates) - 1

    def of(self, name: str, train_flops: int) -> tuple[dict[int, dict[str, Any]], list[float]]:
        """Seed → result, all at the learning rate that suits this model and budget best; and the rates that diverged.

        Raises:
            NotFiniteError: all of them did.
        """
        first = [self._run(name, train_flops, lr, self.seeds[0]) for lr in self.learning_rates]
        sign = 1 if self.task.higher_is_better else -1
        finite = [result for result in first if "diverged" not in result]
        finite.sort(key=lambda result: sign * (result["validation"] or 0.0), reverse=True)
        diverged = [result for result in first if "diverged" in result]
        for best in finite:
            results = {self.seeds[0]: best}
            for seed in self.seeds[1:]:
                results[seed] = self._run(name, train_flops, best["lr"], seed)
                if "diverged" in results[seed]:
                    diverged.append(results[seed])
                    break
            else:
                return results, [result["lr"] for result in diverged]
        rates = ", ".join(f"{lr:g}" for lr in self.learning_rates)
        raise NotFiniteError(
            f"compare: {name} diverged with every learning rate ({rates}); the last time: {diverged[-1]['diverged']}"
        )

    def _run(self, name: str, train_flops: int, lr: float, seed: int) -> dict[str, Any]:
        unit = f"{name} · {train_flops} FLOPs · lr {lr:g} · seed {seed}"
        self.report(unit)
        found = self.log.get(unit)
        if found is not None:
            return found
        where = None if self.folder is None else self.folder / "units" / re.sub(r"[^\w.-]+", "_", unit)
        model, task = build(self.sources[name], seed), self.task
        try:
            result = finetune(
                model, task, budget_flops=train_flops, lr=lr, seed=seed, out=where, resume=True, **self.options
            )
            validation = None
            if len(self.learning_rates) > 1:
                examples = self.options["test_examples"]
                validation = evaluate(model, task, split="validation", max_examples=examples)[task.primary_metric]
        except NotFiniteError as error:
            if len(self.learning_rates) == 1:
                raise NotFiniteError(f"compare: {name}, lr {lr:g}, seed {seed}: {error}") from error
            logger.warning("compare: %s diverged with lr %g and seed %d, which counts as the worst", name, lr, seed)
            return self._keep(unit, where, {"lr": lr, "diverged": str(error)})
        cache = cache_cost(model)
        facts = {
            "lr": lr,
            "steps": result.steps,
            "flops": result.flops,
            "seconds": result.seconds,
            "metrics": result.metrics,
            "validation": validation,
            "parameters": count_parameters(model).total,
            "flops_per_token": flops_per_token_forward(model, task.length),
            "cache_bytes_per_token": cache.bytes_per_token,
            "state_bytes": cache.state_bytes,
        }
        return self._keep(unit, where, facts)

    def _keep(self, unit: str, where: Path | None, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Log what came of a run, then drop its checkpoints."""
        kept = self.log.add(unit, facts)
        if where is not None:
            shutil.rmtree(where)
        return kept

    def step_flops(self, name: str) -> int:
        """What one training step of a model costs."""
        model = build(self.sources[name], self.seeds[0])
        check_length(model, self.task, stage="compare")
        check_backbone(model, self.task, stage="compare")
        take_vocabulary(model, self.task, self.seeds[0])
        use_selective_scan(model)
        set_trainable(
            model,
            self.options["trainable"],
            fresh_vocabulary=self.task.vocab_size is not None,
            lora_rank=self.options["lora_rank"],
        )
        return flops_per_step(model, self.options["batch_size"], self.task.length)


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
