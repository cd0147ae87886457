"""The runs of a comparison: one per model, budget, learning rate and seed, each kept as soon as it is made."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manticore.cache import content_key
from manticore.errors import ManticoreError, NotFiniteError
from manticore.experiments.kept_weights import KeptWeights
from manticore.experiments.models import Source, build
from manticore.experiments.side_by_side import side_by_side
from manticore.kernels.mamba import use_selective_scan
from manticore.runs.ledger import RunLog
from manticore.search.objective import AT_THE_END
from manticore.settings import Compare, Finetune
from manticore.training.budget import cache_cost, count_parameters, flops_per_step, flops_per_token_forward
from manticore.training.classifiers import suits
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune
from manticore.training.prepare import check_backbone, check_length, check_vocabulary, fit_to_task
from manticore.training.trainable import set_trainable
from manticore.training.trainer import default_warmup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manticore.tasks.task import Task

logger = logging.getLogger(__name__)

PASSED = "passed.jsonl"
"""In the folder of a course: the runs that it has got through."""


class Run(NamedTuple):
    """One fine-tuning to one budget; without FLOPs none at all: the model before it."""

    name: str
    """Of the model."""
    seed: int
    lr: float
    train_flops: int
    warms_up_as: int = 0
    """FLOPs of the run whose warm-up it has, where that is not its own: a longer one passes the budgets of shorter
    ones with their numbers."""

    def __str__(self) -> str:
        if not self.train_flops:
            return f"{self.name} · untrained · seed {self.seed}"
        warmup = f" · warm-up of {self.warms_up_as} FLOPs" if self.warms_up_as else ""
        return f"{self.name} · {self.train_flops} FLOPs{warmup} · lr {self.lr:g} · seed {self.seed}"


Course = tuple[Run, ...]
"""Runs of which each goes on where the one before ended."""


@dataclass
class ComparisonRuns:
    """Makes the runs of a comparison, or finds their results.

    At a constant learning rate a run to a larger budget passes the smaller ones: it goes on from its checkpoint there,
    as a killed one does. Otherwise each budget has runs of its own.
    """

    sources: Mapping[str, Source]
    task: Task
    """What is compared, and by which metric."""
    tasks: Mapping[str, Task]
    """Name of a model → the task as it reads it, where that is not the same for all."""
    settings: Compare
    folder: Path | None
    log: RunLog
    workers: int = 1
    """Processes that make runs at the same time."""
    cpu: bool = False
    trainings: Sequence[tuple[str, int]] = ()
    """All (model, training FLOPs) that there will be."""
    weights: KeptWeights | None = None
    """Where the weights of first seeds at some budgets stay until something more is done with these models."""
    report: Callable[[str], None] = field(default=lambda run: None)
    """Called once with the name of each run: before it starts; with several workers, when it has ended."""
    _reported: set[Run] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seeds, self.learning_rates = self.settings.seeds, self.settings.learning_rates
        # whatever every training has, so that no option is left out
        self._tuning = {**self.settings.shared(), "test_examples": self.settings.test_examples}

    @property
    def one_run(self) -> bool:
        """Whether a run passes all budgets of its model."""
        return self.settings.schedule == "constant"

    @property
    def total(self) -> int:
        """Runs that all trainings take."""
        trained = sum(flops > 0 for _, flops in self.trainings)
        return trained * (len(self.learning_rates) - 1) + len(self.trainings) * len(self.seeds)

    def make(self) -> None:
        """Make the runs of all trainings together, as far as they are known beforehand."""
        first, others = self.seeds[0], self.seeds[1:]
        self._make(run for name, flops in self.trainings for run in self._tried(name, flops, first))
        self._make(
            self._run(name, flops, best["lr"], seed)
            for name, flops in self.trainings
            for best in self._ranked(name, flops)[:1]
            for seed in others
        )

    def of(self, name: str, train_flops: int) -> tuple[dict[int, dict[str, Any]], list[float]]:
        """Seed → result, all at the learning rate that suits this model and budget best; and the rates that diverged.

        Raises:
            NotFiniteError: all of them did.
        """
        diverged = [result for result in self._first(name, train_flops) if "diverged" in result]
        for best in self._ranked(name, train_flops):
            results = {self.seeds[0]: best}
            for seed in self.seeds[1:]:
                results[seed] = self._result(self._run(name, train_flops, best["lr"], seed))
                if "diverged" in results[seed]:
                    diverged.append(results[seed])
                    break
            else:
                return results, [result["lr"] for result in diverged]
        rates = ", ".join(f"{lr:g}" for lr in self.learning_rates)
        raise NotFiniteError(
            f"compare: {name} diverged with every learning rate ({rates}); the last time: {diverged[-1]['diverged']}"
        )

    def _run(self, name: str, train_flops: int, lr: float | None, seed: int) -> Run:
        if not train_flops or lr is None:
            return Run(name, seed, 0.0, 0)
        shortest = self._shortest(name)
        own = not self.one_run or self.settings.warmup_steps is not None or train_flops == shortest
        return Run(name, seed, lr, train_flops, 0 if own else shortest)

    def _shortest(self, name: str) -> int:
        return min(flops for each, flops in self.trainings if each == name and flops)

    def _tried(self, name: str, train_flops: int, seed: int) -> list[Run]:
        """One per learning rate; a model before its training has none."""
        rates = self.learning_rates if train_flops else [None]
        return [self._run(name, train_flops, lr, seed) for lr in rates]

    def _ranked(self, name: str, train_flops: int) -> list[dict[str, Any]]:
        """The results of the first seed that are finite, one per learning rate, best first."""
        sign = 1 if self.task.higher_is_better else -1
        finite = [result for result in self._first(name, train_flops) if "diverged" not in result]
        return sorted(finite, key=lambda result: sign * (result["validation"] or 0.0), reverse=True)

    def _first(self, name: str, train_flops: int) -> list[dict[str, Any]]:
        """The results of the first seed, one per learning rate."""
        return [self._result(run) for run in self._tried(name, train_flops, self.seeds[0])]

    def _result(self, run: Run) -> dict[str, Any]:
        self._make([run])
        found = self.log.get(str(run))
        assert found is not None
        return found

    def _make(self, wanted: Iterable[Run]) -> None:
        missing = []
        for course in self._courses(wanted):
            if all(self.log.get(str(run)) is not None for run in course):
                for run in course:
                    self._report(run)
            else:
                missing.append(course)
        if self.workers == 1 or len(missing) == 1:
            for course in missing:
                self._keep(course, self._train(course, self._report))
        else:
            for course, found in side_by_side(self._train, missing, self.workers):
                self._keep(course, found)
                for run in course:
                    self._report(run)

    def _courses(self, wanted: Iterable[Run]) -> list[Course]:
        together: dict[Any, list[Run]] = {}
        for run in dict.fromkeys(wanted):
            joined = self.one_run and run.train_flops > 0
            together.setdefault((run.name, run.lr, run.seed) if joined else run, []).append(run)
        return [tuple(sorted(runs, key=lambda run: run.train_flops)) for runs in together.values()]

    def _report(self, run: Run) -> None:
        if run not in self._reported:
            self._reported.add(run)
            self.report(str(run))

    def _train(self, course: Course, report: Callable[[Run], None] = lambda run: None) -> list[dict[str, Any]]:
        """What comes of each run, as JSON values."""
        with ExitStack() as stack:
            folder = self._folder(course)
            if folder is None and len(course) > 1:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # what a killed course has got through is not made again
            passed = RunLog(None if folder is None else folder / PASSED, {}, resume=True, stage="compare")
            diverged: dict[str, Any] | None = None
            found = []
            for run in course:
                report(run)
                facts = self.log.get(str(run)) or passed.get(str(run))
                if facts is None:
                    facts = diverged or self._score(run, folder, self._warmup(run, passed))
                    passed.add(str(run), facts)
                diverged = facts if "diverged" in facts else None
                found.append(facts)
        return found

    def _warmup(self, run: Run, passed: RunLog) -> int | None:
        """Steps of warm-up; None: what a run of this length has."""
        if not run.warms_up_as:
            return self.settings.warmup_steps
        shortest = str(Run(run.name, self.seeds[0], run.lr, run.warms_up_as))
        # the first seed has passed every budget at this rate before any other begins
        facts = passed.get(shortest) or self.log.get(shortest)
        assert facts is not None
        return default_warmup(facts["steps"])

    def _score(self, run: Run, folder: Path | None, warmup: int | None) -> dict[str, Any]:
        """What comes of a run, which goes on from the checkpoints in its folder."""
        model, task = build(self.sources[run.name], run.seed), self.task_of(run.name)
        validation: float | None = None
        try:
            if run.train_flops:
                tuning = Finetune(
                    **{**self._tuning, "warmup_steps": warmup},
                    budget_flops=run.train_flops,
                    lr=run.lr,
                    # where nothing is kept, only the next budget goes on from one
                    save_steps=AT_THE_END if self.folder is None else None,
                )
                result = finetune(model, task, tuning, seed=run.seed, out=folder, resume=True, cpu=self.cpu)
                model, trained = result.model, result.to_dict()
                if self.weights is not None and run.seed == self.seeds[0]:
                    self.weights.keep(run, model)
                if len(self.learning_rates) > 1:
                    scores = evaluate(model, task, split="validation", max_examples=self.settings.test_examples)
                    validation = scores[task.primary_metric]
            else:
                model = fit_to_task(model, task, run.seed)
                metrics = evaluate(model, task, max_examples=self.settings.test_examples)
                trained = {"steps": 0, "flops": 0, "seconds": 0.0, "metrics": metrics, "metrics_float32": None}
        except NotFiniteError as error:
            if len(self.learning_rates) == 1 or not run.train_flops:
                rate = f", lr {run.lr:g}" if run.train_flops else ", untrained"
                raise NotFiniteError(f"compare: {run.name}{rate}, seed {run.seed}: {error}") from error
            return {"lr": run.lr, "diverged": str(error)}
        cache = cache_cost(model)
        return {
            "lr": run.lr if run.train_flops else None,
            **{name: trained[name] for name in ("steps", "flops", "seconds", "metrics", "metrics_float32")},
            "validation": validation,
            "parameters": count_parameters(model).total,
            "flops_per_token": flops_per_token_forward(model, task.length),
            "cache_bytes_per_token": cache.bytes_per_token,
            "state_bytes": cache.state_bytes,
        }

    def _keep(self, course: Course, found: Sequence[Mapping[str, Any]]) -> None:
        """Log what came of the runs of a course, then drop its checkpoints."""
        for run, facts in zip(course, found):
            if self.log.get(str(run)) is None:
                self.log.add(str(run), facts)
            if "diverged" in facts:
                logger.warning(
                    "compare: %s diverged with lr %g and seed %d, which counts as the worst", run.name, run.lr, run.seed
                )
        where = self._folder(course)
        if where is not None:
            shutil.rmtree(where, ignore_errors=True)

    def chosen(self, name: str, train_flops: int) -> Run:
        """The run of the first seed that a row is of."""
        results, _ = self.of(name, train_flops)
        return self._run(name, train_flops, results[self.seeds[0]]["lr"], self.seeds[0])

    def model_of(self, run: Run) -> PreTrainedModel:
        """The model as a run has left it; trained again where its weights are not here any more."""
        model = fit_to_task(build(self.sources[run.name], run.seed), self.task_of(run.name), run.seed)
        if not run.train_flops:
            return model
        assert self.weights is not None
        weights = self.weights.read(run)
        if weights is None:
            logger.warning("compare: %s is trained again, since its weights were not kept", run)
            self._score(run, None, self._warmup(run, self.log))
            weights = self.weights.read(run)
        if weights is None:
            raise ManticoreError(f"compare: {run} left no weights when it was trained again. Fix: choose another out")
        # in their own type, which training may have changed
        model.load_state_dict(weights, assign=True)
        return model

    def task_of(self, name: str) -> Task:
        """The task as a model reads it."""
        return self.tasks.get(name, self.task)

    def untrained(self, name: str) -> dict[str, Any]:
        """The ``metrics`` of a model as it was given; or why they are ``left_out``: training gives it a new head."""
        key, task = f"{name} · as downloaded", self.task_of(name)
        found = self.log.get(key)
        if found is not None:
            return found
        model = build(self.sources[name], self.seeds[0])
        reason = ""
        if task.num_classes is not None and not suits(model, task):
            reason = f"{task.name} has classes: {name} gets a fresh head for them, which knows nothing before training"
        elif task.vocab_size not in (None, model.config.vocab_size):
            reason = f"{task.name} has its own vocabulary: {name} gets fresh embeddings and a fresh head"
        metrics = {} if reason else evaluate(model, task, max_examples=self.settings.test_examples)
        return self.log.add(key, {"metrics": metrics, "left_out": reason})

    def _folder(self, course: Course) -> Path | None:
        """Where a course keeps its checkpoints; another one if it is to pass other budgets."""
        if self.folder is None:
            return None
        passing = f" {content_key([str(run) for run in course])[:8]}" if len(course) > 1 else ""
        return self.folder / "units" / re.sub(r"[^\w.-]+", "_", f"{course[-1]}{passing}")

    def step_flops(self, name: str) -> int:
        """What one training step of a model costs."""
        model = build(self.sources[name], self.seeds[0])
        task = self.task_of(name)
        check_length(model, task, stage="compare")
        check_backbone(model, task, stage="compare")
        check_vocabulary(model, task, stage="compare")
        model = fit_to_task(model, task, self.seeds[0])
        use_selective_scan(model)
        set_trainable(
            model,
            self.settings.trainable,
            fresh_vocabulary=task.vocab_size is not None,
            lora_rank=self.settings.lora_rank,
        )
        return flops_per_step(model, self.settings.batch_size, task.length)
