"""A study of designs: runs a method to its end on a queue of trials, which any number of workers share.

A trial is one design, trained and measured as often as ``repeats`` says; its parameters are the design's integers, its
values the objectives. Batches are barriers: what a method sees, and which poor designs are stopped, depends on finished
batches alone.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path as Folder
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from manticore.cache import content_key
from manticore.design_settings import Stopping
from manticore.errors import ManticoreError
from manticore.search.designs.method import Batch
from manticore.search.designs.reuse import BASELINE
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design
from manticore.search.designs.training import POINTS, DesignTraining, Failed, Made, Trained
from manticore.search.storage import Connection, no_notices, quiet
from manticore.search.trials import LOOK, RETRIES, Answer, Done, Job, JobFailed, Queue
from manticore.stacks.configuration import StackConfig

logger = logging.getLogger(__name__)

STUDY = "study"
"""Of the study in the folder's own database."""
RUNGS = (POINTS // 4, POINTS // 2)
"""Points of the curve at which ASHA goes on with the better ones: a quarter and a half of the training."""
REDUCTION = 3
"""It goes on with one of so many."""

_TRAINED, _DESIGN, _NAME = "trained", "design", "name"
"""Attributes of a trial."""

Told = Callable[[], None]
"""Called after every new answer."""


def most_losses(curves: Sequence[Sequence[Sequence[float]]], stop: Stopping | None, after: int) -> dict[int, float]:
    """Point of a curve, from 1 → the loss above which a design is stopped there.

    Args:
        curves: ``[tokens, loss]`` at every point, of designs that were trained whole in finished batches.
        stop: ``"median"`` at every point but the last, ``"asha"``: not among the better third at :data:`RUNGS`.
        after: so many curves it takes.
    """
    if stop is None:
        return {}
    longest = max(map(len, curves), default=0)
    whole = [curve for curve in curves if len(curve) == longest]
    if len(whole) < max(1, after):
        return {}
    losses = {point: sorted(curve[point - 1][1] for curve in whole) for point in range(1, len(whole[0]))}
    if stop == "median":
        return {point: statistics.median(found) for point, found in losses.items()}
    return {point: losses[point][math.ceil(len(whole) / REDUCTION) - 1] for point in RUNGS if point in losses}


class DesignStudy:
    """Runs a method of architecture search to its end.

    Args:
        training: trains and measures a design.
        scores: filled on the way.
        connection: to the storage.
        folder: which all workers see.
        settings: everything that trials depend on.
        inputs: digests of what is read.
        joins: go on with the trials that are there.
        workers: designs that train at the same time here, each in a process with one thread.
        told: called after every trial.

    Raises:
        ManticoreError: the storage cannot be used, or holds something else.
    """

    def __init__(
        self,
        training: DesignTraining,
        scores: Scores,
        connection: Connection,
        folder: Folder,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        joins: bool,
        workers: int = 1,
        told: Told | None = None,
    ) -> None:
        self.training, self.scores, self._told = training, scores, told
        self.trained: dict[Design, Trained] = {}
        """What each trial has found out, in the order in which designs were first asked for."""
        self.batches: list[Batch] = []
        """What the method has asked for."""
        self.baselines: dict[str, Trained | str] = {}
        """Name → what its training has found out, or why it has failed."""
        self.configs: dict[Design, StackConfig] = {}
        """Of the designs that the record has shown."""
        self._connection = connection
        self._answers: dict[str, Trained | str] = {}
        with no_notices():
            study = connection.study(settings, inputs, joins=joins)
            study.set_metric_names([goal.measure for goal in scores.goals])
        self._queue = Queue(
            study, connection, folder, self._heard, workers=workers, stage="design", retries=RETRIES, look=LOOK
        )

    @property
    def finished(self) -> int:
        """Trials that have an answer, those of a batch that is not done yet included."""
        return len(self._answers)

    def run(self, asking: Iterable[Batch], baselines: Mapping[str, Made], after: Callable[[], object]) -> None:
        """Answer a method's batches until it asks for no more, then train the baselines.

        Args:
            asking: what the method asks for.
            baselines: name → its configuration.
            after: called after every batch.

        Raises:
            ManticoreError: what training raises, or the storage is gone.
        """
        with quiet(), self._connection.trouble():
            try:
                for batch in asking:
                    self.batches.append(list(batch))
                    self._score(batch)
                    after()
                names = {f"{BASELINE}{name}": name for name in baselines}
                self._queue.answer({key: self._baseline(name, baselines[name]) for key, name in names.items()})
                for key, name in names.items():
                    self.baselines[name] = self._answers[key]
            finally:
                self._queue.leave()

    def tidy(self) -> None:
        """Remove what keeps workers apart, when all is done."""
        self._queue.tidy()

    def best_so_far(self) -> float | None:
        """The best value of the first objective among the designs within the limits that have an answer."""
        goal = self.scores.goals[0]
        designs = (answer for name, answer in self._answers.items() if not name.startswith(BASELINE))
        whole = [answer.measures for answer in designs if isinstance(answer, Trained) and answer.stopped is None]
        values = [measures[goal.measure] for measures in whole if self.scores.keeps_limits(measures)]
        return (max if goal.maximise else min)(values, default=None)

    def _score(self, batch: Batch) -> None:
        known = self.scores.found.keys() | self.scores.failed.keys()
        new = [design for design in dict.fromkeys(batch) if design not in known]
        curves = [trained.curve for trained in self.trained.values() if trained.curve and trained.stopped is None]
        settings = self.training.settings
        most = most_losses(curves, settings.stop, settings.stop_after)
        spelled = {self.scores.space.spelled(design): design for design in new}
        self._queue.answer({name: self._job(name, design, most) for name, design in spelled.items()})
        # in the order in which they were asked for, whoever was first to answer
        for name, design in spelled.items():
            trained = self._answers[name]
            if isinstance(trained, str):
                self.scores.failed[design] = trained
                logger.warning("design: %s: %s; the study goes on without it", name, trained)
                continue
            self.trained[design] = trained
            self.scores.found[design] = trained.measures
            if trained.stopped is not None:
                self.scores.stopped[design] = trained.stopped

    def _heard(self, name: str, answer: Answer, news: bool) -> None:
        self._answers[name] = self._read(name, answer.noted) if answer.failed is None else answer.failed
        if self._told is not None:
            self._told()

    def _read(self, name: str, noted: Mapping[str, Any]) -> Trained:
        try:
            trained = Trained.read(noted[_TRAINED])
            _ = [trained.measures[goal.measure] for goal in self.scores.goals]
        except (KeyError, TypeError) as error:
            raise ManticoreError(
                f"design: {self._connection.shown}: the trial of {name} is damaged, or of another version of "
                "Manticore. Fix: choose another place"
            ) from error
        return trained

    def _job(self, name: str, design: Design, most: Mapping[int, float]) -> Job:
        space = self.scores.space
        params: dict[str, str | int] = {}
        ranges: dict[str, BaseDistribution] = {}
        for (label, called), legal, value in zip(space.labels, space.values, design):
            params[label] = called[list(legal).index(value)]
            ranges[label] = CategoricalDistribution(list(called))

        def work() -> Done:
            return self._done(lambda: self.training.of(self.scores.space, design, most=most), {_DESIGN: name})

        return Job(work, f"design-{content_key(name)}", params, ranges)

    def _baseline(self, name: str, make: Made) -> Job:
        def work() -> Done:
            return self._done(lambda: self.training.of_config(make, f"{BASELINE}{name}"), {_NAME: name})

        return Job(work, f"baseline-{name}")

    def _done(self, train: Callable[[], Trained], noted: Mapping[str, Any]) -> Done:
        try:
            trained = train()
        except Failed as failure:
            raise JobFailed(str(failure), noted) from failure
        values = [trained.measures[goal.measure] for goal in self.scores.goals]
        return Done(values, {**noted, _TRAINED: trained.to_dict(), **trained.measures})


def baselines(config: StackConfig) -> dict[str, Made]:
    """Hand-made stacks of a design's depth and width, each once: some are the same below four layers.

    Transformer++ has attention and SwiGLU in turns, striped Mamba one attention in four layers and SwiGLU behind it,
    the sandwich attention below and SwiGLU above, MambaFormer Mamba below and between attention without positions.
    Heads have 16 channels where that divides the width.

    Args:
        config: of one design.
    """
    depth, width = config.num_hidden_layers, config.hidden_size
    heads = {"num_heads": width // 16 if width % 16 == 0 else 1}
    attention, unordered = ["mh-attention", heads], ["mh-attention", {**heads, "rotary": False}]
    quarter = depth // 4
    between = depth - 2 * quarter
    layers: dict[str, list[Any]] = {
        "transformer++": _striped([attention, "swiglu"], depth),
        "striped-mamba": _striped(["mamba", "mamba", attention, "swiglu"], depth),
        "sandwich": [attention] * quarter + _striped([attention, "swiglu"], between) + ["swiglu"] * quarter,
        "mambaformer": _striped(["mamba", unordered], depth),
    }

    def making(entries: list[Any]) -> Made:
        def make(*, vocab_size: int, positions: int) -> StackConfig:
            sizes = {"vocab_size": vocab_size, "max_position_embeddings": positions, "layers": entries}
            return StackConfig(**{**like, **sizes})

        return make

    like = {name: getattr(config, name) for name in ("hidden_size", "norm", "norm_eps", "head_bias", "linear_init")}
    names = list(layers)
    once = [name for index, name in enumerate(names) if layers[name] not in map(layers.get, names[:index])]
    return {name: making(layers[name]) for name in once}


def _striped(pattern: Sequence[Any], depth: int) -> list[Any]:
    return [pattern[n % len(pattern)] for n in range(depth)]
