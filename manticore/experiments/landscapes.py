"""The scores of every path through a supernet, so that what a search found can be compared with what there was.

Expensive: components to the power of blocks fine-tunings. For benchmarks of searches on small hybrids.
"""

from __future__ import annotations

import itertools
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from manticore.hybrid.discretize import discretize
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.runs.ledger import RUNS, RunLog
from manticore.runs.lineage import training_inputs
from manticore.tasks.task import Task
from manticore.training.finetune import finetune

Path = tuple[int, ...]
"""One component index per block."""


@dataclass(frozen=True)
class Landscape:
    """What each candidate scored after the same fine-tuning."""

    metrics: dict[Path, dict[str, float]]
    """Path → its metrics on the test split."""
    metric: str
    """The metric that decides."""
    higher_is_better: bool

    @property
    def best(self) -> Path:
        """The path with the best score."""
        return min(self.metrics, key=self.shortfall)

    def shortfall(self, path: Sequence[int]) -> float:
        """How far a path scores below the best one, in the task's metric; at least 0."""
        return max(self._scores.values()) - self._scores[tuple(path)]

    def regret(self, path: Sequence[int]) -> float:
        """The shortfall as a share of the way from the best path to the worst: 0 is the best, 1 the worst.

        Where all candidates score the same every one is the best.
        """
        span = max(self._scores.values()) - min(self._scores.values())
        return self.shortfall(path) / (span or 1.0)

    @property
    def blind_shortfall(self) -> float:
        """The expected shortfall of a path that is drawn at random."""
        return max(self._scores.values()) - statistics.fmean(self._scores.values())

    @property
    def _scores(self) -> dict[Path, float]:
        """Higher is better."""
        sign = 1 if self.higher_is_better else -1
        return {path: sign * metrics[self.metric] for path, metrics in self.metrics.items()}


def landscape(
    supernet: ManticorePreTrainedModel,
    task: Task,
    *,
    paths: Iterable[Sequence[int]] | None = None,
    out: str | pathlib.Path | None = None,
    resume: bool = False,
    progress: Callable[[int, Path], None] | None = None,
    **settings: Any,
) -> Landscape:
    """Fine-tune every path of a supernet with the same settings and score it.

    Args:
        supernet: left as it is.
        task: what is trained and scored on.
        paths: the candidates; None: all, components to the power of blocks.
        out: folder for the scores, a line per path that is done; None writes nothing.
        resume: go on with the scores in ``out``, if there are any.
        progress: told how many paths are done, and the one that was done last.
        settings: those of :func:`manticore.finetune`; with ``budget_flops`` paths of different cost get equal compute.
            With ``out`` they are JSON values.

    Raises:
        ManticoreError: the hybrid is discretized already, ``out`` is of other settings, weights or data, or what
            ``finetune`` raises.
    """
    if paths is None:
        paths = itertools.product(range(supernet.config.num_components), repeat=supernet.config.num_blocks)
    log = RunLog(None, {}, resume=resume, stage="landscape")
    if out is not None:
        log = RunLog(
            pathlib.Path(out) / RUNS, settings, training_inputs(supernet, task), resume=resume, stage="landscape"
        )
    metrics: dict[Path, dict[str, float]] = {}
    for path in map(tuple, paths):
        name = ",".join(map(str, path))
        metrics[path] = log.get(name) or log.add(name, finetune(discretize(supernet, path), task, **settings).metrics)
        if progress is not None:
            progress(len(metrics), path)
    return Landscape(metrics, task.primary_metric, task.higher_is_better)
