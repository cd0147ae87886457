"""A search and its trials: trains the candidates that a method asks for, with other workers, and keeps their points.

A trial of the optuna study is one request: a candidate at a mark. Every worker runs the same method, which depends on
the curves and the seed alone, so all ask for the same; whoever comes first puts a request into the queue, whoever is
free takes one out, and all go on when all of it is answered. Of several trials for the same request, which workers make
that ask at the same time, the first counts.
"""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from manticore.experiments.side_by_side import side_by_side
from manticore.search.choice import Choice, Request, Search, Shared
from manticore.search.curves import Curves, Point
from manticore.search.objective import Failed, Objective
from manticore.search.presence import Presence
from manticore.search.shared import shared_scores
from manticore.search.space import Path, spelled
from manticore.search.storage import Connection, quiet
from manticore.training.budget import COUNTED

logger = logging.getLogger(__name__)

RETRIES = 3
"""How often a trial is given to another worker after its own has died."""
LOOK = 1.0
"""Seconds between looks at what the other workers do."""

# attributes of a trial
_REQUEST, _WORKER, _POINTS, _FAILED, _STOPPED = "request", "worker", "points", "failed", "stopped"

Told = Callable[[str], None]
"""Called with what was done last."""


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    points: list[dict[str, Any]]
    failed: str | None
    """Why there are no points."""


class _Trials:
    """The trials of a study as they are now, by request, in order."""

    def __init__(self, found: Mapping[str, list[FrozenTrial]]) -> None:
        self._found = found

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
            return Answer(noted.get(_POINTS, []), noted.get(_FAILED)) if first.state.is_finished() else None
        died = sum(trial.state == TrialState.FAIL and _STOPPED not in trial.user_attrs for trial in self.of(name))
        if died <= RETRIES:
            return None
        return Answer([], f"its worker died {died} times, which often means that memory ran out")

    def waiting(self, names: Iterable[str]) -> int:
        """How many of these requests nobody has taken up yet."""
        firsts = [self.first(name) for name in names]
        return sum(first is not None and first.state == TrialState.WAITING for first in firsts)


def _counts(trial: FrozenTrial) -> bool:
    if trial.state == TrialState.FAIL:
        return _FAILED in trial.user_attrs
    return trial.state != TrialState.PRUNED


class Study:
    """Runs a method to its choice.

    Args:
        objective: trains and scores a candidate.
        curves: filled on the way.
        connection: to the storage.
        settings: everything that the points depend on beside their candidates and marks.
        inputs: digests of what is read.
        joins: go on with the trials that are there.
        workers: candidates that train at the same time here, each in a process with one thread.
        told: told about every evaluation.

    Raises:
        ManticoreError: the storage cannot be used, or holds something else.
    """

    def __init__(
        self,
        objective: Objective,
        curves: Curves,
        connection: Connection,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        joins: bool,
        workers: int = 1,
        told: Told | None = None,
    ) -> None:
        self.objective, self.curves, self._workers, self._told = objective, curves, workers, told
        self._connection = connection
        with quiet():
            self._study = connection.study(settings, inputs, joins=joins)
        self._presence = Presence(objective.folder)
        self._asked: dict[str, Request | Shared] = {}
        self._known: set[str] = set()

    def run(self, search: Search) -> Choice:
        """Answer a method's requests until it has chosen.

        Raises:
            ManticoreError: what training raises, or the storage is gone.
        """
        with quiet(), self._connection.trouble():
            try:
                while True:
                    asked = next(search)
                    if isinstance(asked, Shared):
                        self._answer({_name(asked): asked})
                    else:
                        self.make(asked)
            except StopIteration as end:
                choice: Choice = end.value
                return choice
            finally:
                self._presence.leave()
                self._connection.close()

    def tidy(self) -> None:
        """Remove what keeps workers apart, when all is done."""
        self._presence.clear()

    def make(self, requests: Sequence[Request]) -> None:
        """Train candidates to marks, or wait for others that do; the curves hold their points afterwards."""
        for path, _ in requests:
            # in the order in which they were asked for, whoever is first to answer
            self.curves.points.setdefault(path, {})
        self._answer({_name(request): request for request in requests if request[0] not in self.curves.failed})

    def _answer(self, wanted: Mapping[str, Request | Shared]) -> None:
        """Take trials out of the queue until every request is answered, by whomever."""
        self._asked = dict(wanted)
        # what is there from the beginning is no news
        self._look(wanted, news=False)
        while True:
            self._bury()
            trials = self._look(wanted)
            open_ = [name for name in wanted if name not in self._known]
            if not open_:
                return
            for name in open_:
                if trials.first(name) is None:
                    self._enqueue(name, wanted[name], trials)
            waiting = self._trials().waiting(open_)
            if not waiting:
                time.sleep(LOOK)
            elif self._workers > 1:
                # a single one too: what kills its process must not kill this one
                self._connection.close()
                for _, counted in side_by_side(self._take_in_a_fork, range(waiting), self._workers, outlives=True):
                    COUNTED.update(counted)
                    self._look(wanted)
                    self._connection.close()
            else:
                self._take()

    def _look(self, wanted: Mapping[str, Request | Shared], *, news: bool = True) -> _Trials:
        """Put the answers that there are into the curves, and tell about new ones."""
        trials = self._trials()
        for name, asked in wanted.items():
            if name in self._known or (answer := trials.answer(name)) is None:
                continue
            self._known.add(name)
            if isinstance(asked, Shared):
                # it keeps a ledger of its own
                self.curves.shared = shared_scores(self.objective, asked)
            else:
                self._show(asked[0], answer)
            if news and self._told is not None:
                self._told(name)
        return trials

    def _show(self, path: Path, answer: Answer) -> None:
        if answer.failed is not None:
            self.curves.failed[path] = answer.failed
            logger.warning("search: path %s: %s; the search goes on without it", spelled(path), answer.failed)
        for point in answer.points:
            self.curves.add(path, Point.read(point))

    def _take_in_a_fork(self, _: int) -> dict[str, int]:
        """Train one trial of the queue; returns the FLOPs that were counted for it, which later ones need too."""
        before = set(COUNTED)
        with _ends_on_sigterm():
            self._study = self._connection.again()
            self._presence = Presence(self.objective.folder)
            self._take()
            self._presence.leave()
        return {key: flops for key, flops in COUNTED.items() if key not in before}

    def _take(self) -> None:
        """Train one trial of the queue."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.optimize(self._train, n_trials=1, catch=(Failed,))
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
            # this worker was silent for too long, and its trial is another's now
            if isinstance(error, ValueError) and "Cannot tell" not in str(error):
                raise
            logger.warning("search: another worker has taken over what this one was silent about for too long")

    def _train(self, trial: Trial) -> float:
        name = trial.user_attrs.get(_REQUEST, "")
        first = self._trials().first(name)
        if name not in self._asked or first is None or first.number != trial.number:
            # others were faster, in asking or in taking; what is asked for further on is put back
            raise optuna.TrialPruned
        asked = self._asked[name]
        trial.set_user_attr(_WORKER, self._presence.worker)
        try:
            with self._presence.alone("shared" if isinstance(asked, Shared) else f"path-{spelled(asked[0])}"):
                if isinstance(asked, Shared):
                    scores = shared_scores(self.objective, asked).points.values()
                    return min((point.loss for point in scores), default=math.inf)
                points = self.objective.advance(*asked)
        except Failed as failure:
            trial.set_user_attr(_POINTS, [point.to_dict() for point in failure.points])
            trial.set_user_attr(_FAILED, str(failure))
            raise
        except BaseException as stop:
            # what was wrong is more than that it cannot be noted
            with suppress(Exception):
                trial.set_user_attr(_STOPPED, type(stop).__name__)
            raise
        trial.set_user_attr(_POINTS, [point.to_dict() for point in points])
        return points[-1].loss

    def _trials(self) -> _Trials:
        found: dict[str, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            found.setdefault(trial.user_attrs.get(_REQUEST, ""), []).append(trial)
        return _Trials(found)

    def _enqueue(self, name: str, asked: Request | Shared, trials: _Trials) -> None:
        params: dict[str, int] = {}
        ranges: dict[str, BaseDistribution] = {}
        if not isinstance(asked, Shared):
            path, mark = asked
            blocks = {f"block {n}": component for n, component in enumerate(path)}
            params = {**blocks, "mark": mark}
            ranges = {block: IntDistribution(0, self.curves.space.num_components - 1) for block in blocks}
            ranges["mark"] = IntDistribution(0, self.curves.marks[-1])
        before = trials.of(name)
        self._study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=params,
                distributions=ranges,
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


def _name(asked: Request | Shared) -> str:
    if isinstance(asked, Shared):
        return f"{asked.units:g} units of shared weights, {asked.sampling}"
    path, mark = asked
    return f"{spelled(path)} to mark {mark}"
