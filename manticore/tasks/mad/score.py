"""MAD scores: from single runs to one number per setting, task and model.

    setting score = max over learning rates and weight decays
    task score    = mean over the task's settings
    model score   = mean over the tasks

Source: Poli et al. 2024, arXiv 2403.17844, and its public code: means are not weighted, runs without a finite score are
left out. What is missing is counted, never filled in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean


@dataclass(frozen=True)
class Run:
    """The outcome of one run: a model trained on one setting with one learning rate and weight decay."""

    model: str
    task: str
    setting: str
    lr: float
    weight_decay: float
    selection: float
    """Score on the split that chooses among runs; not finite: the run failed."""
    score: float
    """Score on the test split at the same epoch."""


@dataclass(frozen=True)
class SettingScore:
    """The best run of one model on one setting."""

    setting: str
    score: float | None
    """None: every run failed."""
    lr: float | None
    weight_decay: float | None
    runs: int
    """Runs that count."""
    failed: int


@dataclass(frozen=True)
class TaskScore:
    """Mean over the settings of a task that have a score."""

    task: str
    settings: tuple[SettingScore, ...]

    @property
    def score(self) -> float | None:
        """None: no setting has a score."""
        return mean_score(setting.score for setting in self.settings)


@dataclass(frozen=True)
class ModelScore:
    """Mean over the tasks that have a score."""

    model: str
    tasks: dict[str, TaskScore] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """None: no task has a score."""
        return mean_score(task.score for task in self.tasks.values())

    @property
    def num_scored_tasks(self) -> int:
        """Tasks that the mean is over."""
        return sum(task.score is not None for task in self.tasks.values())


def setting_score(setting: str, runs: Iterable[Run]) -> SettingScore:
    """The run with the best selection score; its test score is what counts."""
    runs = list(runs)
    finite = [run for run in runs if math.isfinite(run.selection) and math.isfinite(run.score)]
    if not finite:
        return SettingScore(setting, None, None, None, 0, len(runs))
    # of equal runs the first of the grid, whatever order they were made in
    best = max(finite, key=lambda run: (run.selection, -run.lr, -run.weight_decay))
    return SettingScore(setting, best.score, best.lr, best.weight_decay, len(finite), len(runs) - len(finite))


def model_scores(runs: Iterable[Run]) -> list[ModelScore]:
    """One entry per model, with its tasks and settings, in the order in which they first appear."""
    grouped: dict[str, dict[str, dict[str, list[Run]]]] = {}
    for run in runs:
        grouped.setdefault(run.model, {}).setdefault(run.task, {}).setdefault(run.setting, []).append(run)
    return [
        ModelScore(
            model,
            {
                task: TaskScore(task, tuple(setting_score(name, found) for name, found in by_setting.items()))
                for task, by_setting in by_task.items()
            },
        )
        for model, by_task in grouped.items()
    ]


def mean_score(scores: Iterable[float | None]) -> float | None:
    """Unweighted mean of the scores that there are; None if there are none."""
    found = [score for score in scores if score is not None]
    return fmean(found) if found else None


def rank_correlation(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """Spearman's rank correlation over the models that both have; equal scores share their mean rank.

    Returns:
        A number from -1 to 1; ``nan`` with fewer than two models in common, or if one side is constant.
    """
    common = [model for model in ours if model in theirs]
    if len(common) < 2:
        return math.nan
    left, right = _ranks([ours[model] for model in common]), _ranks([theirs[model] for model in common])
    mean = (len(common) + 1) / 2
    covariance = sum((a - mean) * (b - mean) for a, b in zip(left, right))
    spread = math.sqrt(sum((a - mean) ** 2 for a in left) * sum((b - mean) ** 2 for b in right))
    return covariance / spread if spread > 0 else math.nan


def _ranks(values: list[float]) -> list[float]:
    """1 for the smallest; equal values get the mean of their places."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]
