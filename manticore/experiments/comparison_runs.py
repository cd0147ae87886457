"""The runs of a comparison: one per model, budget, learning rate and seed, each kept as soon as it is made."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manticore.errors import NotFiniteError
from manticore.experiments.models import Source, build
from manticore.experiments.side_by_side import side_by_side
from manticore.kernels.mamba import use_selective_scan
from manticore.runs.ledger import RunLog
from manticore.settings import Compare, Finetune
from manticore.training.budget import cache_cost, count_parameters, flops_per_step, flops_per_token_forward
from manticore.training.classifiers import suits
from manticore.training.finetune import evaluate, finetune
from manticore.training.prepare import check_backbone, check_length, check_vocabulary, fit_to_task
from manticore.training.trainable import set_trainable

if TYPE_CHECKING:
    from manticore.tasks.task import Task

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """One fine-tuning."""

    name: str
    """Of the model."""
    train_flops: int
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.name} · {self.train_flops} FLOPs · lr {self.lr:g} · seed {self.seed}"


@dataclass
class ComparisonRuns:
    """Makes the runs of a comparison, or finds their results."""

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
    report: Callable[[str], None] = field(default=lambda run: None)
    """Called once with the name of each run: before it starts; with several workers, when it has ended."""
    _reported: set[Run] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seeds, self.learning_rates = self.settings.seeds, self.settings.learning_rates
        # whatever every training has, so that no option is left out
        self._tuning = {**self.settings.shared(), "test_examples": self.settings.test_examples}

    @property
    def per_row(self) -> int:
        """Runs that a row of the table takes."""
        return len(self.seeds) + len(self.learning_rates) - 1

    def make(self, trainings: Sequence[tuple[str, int]]) -> None:
        """Make the runs of all (model, training FLOPs) together, as far as they are known beforehand."""
        self._make(
            Run(name, flops, lr, self.seeds[0]) for name, flops in trainings for lr in self.learning_rates
        )  # fmt: skip
        self._make(
            Run(name, flops, best["lr"], seed)
            for name, flops in trainings
            for best in self._ranked(name, flops)[:1]
            for seed in self.seeds[1:]
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
                results[seed] = self._result(Run(name, train_flops, best["lr"], seed))
                if "diverged" in results[seed]:
                    diverged.append(results[seed])
                    break
            else:
                return results, [result["lr"] for result in diverged]
        rates = ", ".join(f"{lr:g}" for lr in self.learning_rates)
        raise NotFiniteError(
            f"compare: {name} diverged with every learning rate ({rates}); the last time: {diverged[-1]['diverged']}"
        )

    def _ranked(self, name: str, train_flops: int) -> list[dict[str, Any]]:
        """The results of the first seed that are finite, one per learning rate, best first."""
        sign = 1 if self.task.higher_is_better else -1
        finite = [result for result in self._first(name, train_flops) if "diverged" not in result]
        return sorted(finite, key=lambda result: sign * (result["validation"] or 0.0), reverse=True)

    def _first(self, name: str, train_flops: int) -> list[dict[str, Any]]:
        """The results of the first seed, one per learning rate."""
        return [self._result(Run(name, train_flops, lr, self.seeds[0])) for lr in self.learning_rates]

    def _result(self, run: Run) -> dict[str, Any]:
        self._make([run])
        found = self.log.get(str(run))
        assert found is not None
        return found

    def _make(self, wanted: Iterable[Run]) -> None:
        missing = []
        for run in wanted:
            if self.log.get(str(run)) is None:
                missing.append(run)
            else:
                self._report(run)
        if self.workers == 1 or len(missing) == 1:
            for run in missing:
                self._report(run)
                self._keep(run, self._train(run))
        else:
            for run, facts in side_by_side(self._train, missing, self.workers):
                self._keep(run, facts)
                self._report(run)

    def _report(self, run: Run) -> None:
        if run not in self._reported:
            self._reported.add(run)
            self.report(str(run))

    def _train(self, run: Run) -> dict[str, Any]:
        """What comes of a run, as JSON values."""
        model, task = build(self.sources[run.name], run.seed), self._task(run.name)
        try:
            tuning = Finetune(**self._tuning, budget_flops=run.train_flops, lr=run.lr)
            folder = self._folder(run)
            result = finetune(model, task, tuning, seed=run.seed, out=folder, resume=True, cpu=self.cpu)
            model, validation = result.model, None
            if len(self.learning_rates) > 1:
                scores = evaluate(model, task, split="validation", max_examples=self.settings.test_examples)
                validation = scores[task.primary_metric]
        except NotFiniteError as error:
            if len(self.learning_rates) == 1:
                raise NotFiniteError(f"compare: {run.name}, lr {run.lr:g}, seed {run.seed}: {error}") from error
            return {"lr": run.lr, "diverged": str(error)}
        cache = cache_cost(model)
        return {
            "lr": run.lr,
            "steps": result.steps,
            "flops": result.flops,
            "seconds": result.seconds,
            "metrics": result.metrics,
            "metrics_float32": result.metrics_float32,
            "validation": validation,
            "parameters": count_parameters(model).total,
            "flops_per_token": flops_per_token_forward(model, task.length),
            "cache_bytes_per_token": cache.bytes_per_token,
            "state_bytes": cache.state_bytes,
        }

    def _keep(self, run: Run, facts: Mapping[str, Any]) -> None:
        """Log what came of a run, then drop its checkpoints."""
        self.log.add(str(run), facts)
        if "diverged" in facts:
            logger.warning(
                "compare: %s diverged with lr %g and seed %d, which counts as the worst", run.name, run.lr, run.seed
            )
        where = self._folder(run)
        if where is not None:
            shutil.rmtree(where)

    def _task(self, name: str) -> Task:
        return self.tasks.get(name, self.task)

    def untrained(self, name: str) -> dict[str, Any]:
        """The ``metrics`` of a model as it was given; or why they are ``left_out``: training gives it a new head."""
        key, task = f"{name} · as downloaded", self._task(name)
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

    def _folder(self, run: Run) -> Path | None:
        return None if self.folder is None else self.folder / "units" / re.sub(r"[^\w.-]+", "_", str(run))

    def step_flops(self, name: str) -> int:
        """What one training step of a model costs."""
        model = build(self.sources[name], self.seeds[0])
        task = self._task(name)
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
