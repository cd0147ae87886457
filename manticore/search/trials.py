"""A queue of trials that several workers share: searches over paths and studies of designs run on it alike.

A trial of an optuna study is one request. Every worker runs the same method, which depends on scores and the seed
alone, so all ask for the same; whoever comes first puts a request into the queue, whoever is free takes one out, and
all go on when all of it is answered. Of several trials for the same request, which workers make that ask at the same
time, the first counts.
"""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path as Folder
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from manticore.experiments.side_by_side import side_by_side
from manticore.search.presence import Presence
from manticore.search.storage import Connection
from manticore.training.budget import COUNTED

logger = logging.getLogger(__name__)

RETRIES = 3
"""How often a trial is given to another worker after its own has died."""
LOOK = 1.0
"""Seconds between looks at what the other workers do."""

# attributes of a trial
_REQUEST, _WORKER, _FAILED, _STOPPED = "request", "worker", "failed", "stopped"


@dataclass(frozen=True)
class Done:
    """What work on a request has given."""

    values: float | Sequence[float]
    """One for each direction of the study."""
    noted: Mapping[str, Any]
    """What is kept with the trial, as JSON values."""


class JobFailed(Exception):
    """A request cannot be answered, and no other worker could.

    Args:
        why: in a sentence.
        noted: what is kept with the trial all the same.
    """

    def __init__(self, why: str, noted: Mapping[str, Any] | None = None) -> None:
        super().__init__(why)
        self.noted = dict(noted or {})


@dataclass(frozen=True)
class Job:
    """A request, and how it is answered."""

    work: Callable[[], Done]
    """Raises :class:`JobFailed` where there is no answer."""
    alone: str
    """What only one worker at a time may be at."""
    params: Mapping[str, str | int] = field(default_factory=dict)
    """Of the trial, as dashboards show them."""
    ranges: Mapping[str, BaseDistribution] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    noted: Mapping[str, Any]
    failed: str | None
    """Why there is no result."""


Heard = Callable[[str, Answer, bool], None]
"""Called with each answer: its request, and whether it is news."""


class _Trials:
    """The trials of a study as they are now, by request, in order."""

    def __init__(self, found: Mapping[str, list[FrozenTrial]], retries: int) -> None:
        self._found, self._retries = found, retries

    def of(self, name: str) -> list[FrozenTrial]:
        return self._found.get(name, [])

    def first(self, name: str) -> FrozenTrial | None:
        """The trial of a request that counts: the first that is an answer, or may become one."""
        return next((trial for trial in self.of(name) if _counts(trial)), None)

    def answer(self, name: str) -> Answer | None:
        """None where there is none yet."""
        first = self.first(name)
        if first is not None:
            noted = first.user_attrs
            return Answer(noted, noted.get(_FAILED)) if first.state.is_finished() else None
        died = sum(trial.state == TrialState.FAIL and _STOPPED not in trial.user_attrs for trial in self.of(name))
        if died <= self._retries:
            return None
        return Answer({}, f"its worker died {died} times, which often means that memory ran out")

    def waiting(self, names: Iterable[str]) -> int:
        """How many of these requests nobody has taken up yet."""
        firsts = [self.first(name) for name in names]
        return sum(first is not None and first.state == TrialState.WAITING for first in firsts)


def _counts(trial: FrozenTrial) -> bool:
    if trial.state == TrialState.FAIL:
        return _FAILED in trial.user_attrs
    return trial.state != TrialState.PRUNED


class Queue:
    """Answers requests, together with the other workers of a study.

    Args:
        study: that holds the trials.
        connection: to its storage.
        folder: of the search, which all workers see.
        heard: told about every answer.
        workers: requests that are worked on at the same time here, each in a process with one thread.
        stage: the verb that messages begin with.
        retries: how often a trial is given to another worker after its own has died.
        look: seconds between looks at what the other workers do.
    """

    def __init__(
        self,
        study: optuna.Study,
        connection: Connection,
        folder: Folder,
        heard: Heard,
        *,
        workers: int = 1,
        stage: str = "search",
        retries: int = RETRIES,
        look: float = LOOK,
    ) -> None:
        self._study, self._connection, self._folder, self._heard = study, connection, folder, heard
        self._workers, self._stage, self._retries, self._pause = workers, stage, retries, look
        self._presence = Presence(folder)
        self._jobs: dict[str, Job] = {}
        self._known: set[str] = set()

    def leave(self) -> None:
        """This process is no worker any more."""
        self._presence.leave()
        self._connection.close()

    def tidy(self) -> None:
        """Remove what keeps workers apart, when all is done."""
        self._presence.clear()

    def answer(self, jobs: Mapping[str, Job]) -> None:
        """Take trials out of the queue until every request is answered, by whomever.

        Args:
            jobs: request → how it is answered.
        """
        self._jobs = dict(jobs)
        # what is there from the beginning is no news
        self._look(news=False)
        while True:
            self._bury()
            trials = self._look()
            open_ = [name for name in jobs if name not in self._known]
            if not open_:
                return
            for name in open_:
                if trials.first(name) is None:
                    self._enqueue(name, trials)
            waiting = self._trials().waiting(open_)
            if not waiting:
                time.sleep(self._pause)
            elif self._workers > 1:
                # a single one too: what kills its process must not kill this one
                self._connection.close()
                for _, counted in side_by_side(self._take_in_a_fork, range(waiting), self._workers, outlives=True):
                    COUNTED.update(counted)
                    self._look()
                    self._connection.close()
            else:
                self._take()

    def _look(self, *, news: bool = True) -> _Trials:
        """Hand on the answers that there are."""
        trials = self._trials()
        for name in self._jobs:
            if name not in self._known and (answer := trials.answer(name)) is not None:
                self._known.add(name)
                self._heard(name, answer, news)
        return trials

    def _take_in_a_fork(self, _: int) -> dict[str, int]:
        """Work on one trial of the queue; returns the FLOPs that were counted for it, which later ones need too."""
        before = set(COUNTED)
        with _ends_on_sigterm():
            self._study = self._connection.again()
            self._presence = Presence(self._folder)
            self._take()
            self._presence.leave()
        return {key: flops for key, flops in COUNTED.items() if key not in before}

    def _take(self) -> None:
        """Work on one trial of the queue."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.optimize(self._work, n_trials=1, catch=(JobFailed,))
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
            # this worker was silent for too long, and its trial is another's now
            if isinstance(error, ValueError) and "Cannot tell" not in str(error):
                raise
            logger.warning("%s: another worker has taken over what this one was silent about for too long", self._stage)

    def _work(self, trial: Trial) -> float | Sequence[float]:
        name = trial.user_attrs.get(_REQUEST, "")
        first = self._trials().first(name)
        if name not in self._jobs or first is None or first.number != trial.number:
            # others were faster, in asking or in taking; what is asked for further on is put back
            raise optuna.TrialPruned
        job = self._jobs[name]
        trial.set_user_attr(_WORKER, self._presence.worker)
        try:
            with self._presence.alone(job.alone):
                done = job.work()
        except JobFailed as failure:
            for attribute, value in failure.noted.items():
                trial.set_user_attr(attribute, value)
            trial.set_user_attr(_FAILED, str(failure))
            raise
        except BaseException as stop:
            # what was wrong is more than that it cannot be noted
            with suppress(Exception):
                trial.set_user_attr(_STOPPED, type(stop).__name__)
            raise
        for attribute, value in done.noted.items():
            trial.set_user_attr(attribute, value)
        return done.values

    def _trials(self) -> _Trials:
        found: dict[str, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            found.setdefault(trial.user_attrs.get(_REQUEST, ""), []).append(trial)
        return _Trials(found, self._retries)

    def _enqueue(self, name: str, trials: _Trials) -> None:
        job, before = self._jobs[name], trials.of(name)
        self._study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=dict(job.params),
                distributions=dict(job.ranges),
                user_attrs={_REQUEST: name, **({"retry_of": before[0].number} if before else {})},
            )
        )

    def _bury(self) -> None:
        """Mark the trials of dead workers as failed: of silent ones, and of this machine's that have ended."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._presence.is_dead(trial.user_attrs.get(_WORKER)):
                try:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    # another worker has just done so
                    continue


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM as a stop of this process, whose trial is marked as stopped."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGTERM) from None
