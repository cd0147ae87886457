"""A search and its trials: trains the candidates that a method asks for, with other workers, and keeps their points.

A trial of the optuna study is one request: a candidate at a mark (:mod:`manticore.search.trials`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution

from manticore.search.choice import Choice, Request, Search, Shared
from manticore.search.curves import Curves, Point
from manticore.search.objective import Failed, Objective
from manticore.search.shared import shared_scores
from manticore.search.space import spelled
from manticore.search.storage import Connection, quiet
from manticore.search.trials import LOOK, RETRIES, Answer, Done, Job, JobFailed, Queue

logger = logging.getLogger(__name__)

_POINTS = "points"
"""An attribute of a trial."""

Told = Callable[[str], None]
"""Called with what was done last."""


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
        self.objective, self.curves, self._told = objective, curves, told
        self._connection = connection
        with quiet():
            study = connection.study(settings, inputs, joins=joins)
        self._queue = Queue(
            study, connection, objective.folder, self._heard, workers=workers, retries=RETRIES, look=LOOK
        )
        self._asked: dict[str, Request | Shared] = {}

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
                        self._answer([asked])
                    else:
                        self.make(asked)
            except StopIteration as end:
                choice: Choice = end.value
                return choice
            finally:
                self._queue.leave()

    def tidy(self) -> None:
        """Remove what keeps workers apart, when all is done."""
        self._queue.tidy()

    def make(self, requests: Sequence[Request]) -> None:
        """Train candidates to marks, or wait for others that do; the curves hold their points afterwards."""
        for path, _ in requests:
            # in the order in which they were asked for, whoever is first to answer
            self.curves.points.setdefault(path, {})
        self._answer([request for request in requests if request[0] not in self.curves.failed])

    def _answer(self, wanted: Sequence[Request | Shared]) -> None:
        self._asked = {_name(asked): asked for asked in wanted}
        self._queue.answer({name: self._job(asked) for name, asked in self._asked.items()})

    def _heard(self, name: str, answer: Answer, news: bool) -> None:
        """Put an answer into the curves, and tell about a new one."""
        asked = self._asked[name]
        if isinstance(asked, Shared):
            # it keeps a ledger of its own
            self.curves.shared = shared_scores(self.objective, asked)
        else:
            path = asked[0]
            if answer.failed is not None:
                self.curves.failed[path] = answer.failed
                logger.warning("search: path %s: %s; the search goes on without it", spelled(path), answer.failed)
            for point in answer.noted.get(_POINTS, []):
                self.curves.add(path, Point.read(point))
        if news and self._told is not None:
            self._told(name)

    def _job(self, asked: Request | Shared) -> Job:
        if isinstance(asked, Shared):
            return Job(lambda: self._share(asked), "shared")
        path, mark = asked
        blocks = {f"block {n}": component for n, component in enumerate(path)}
        ranges: dict[str, BaseDistribution] = {
            block: IntDistribution(0, self.curves.space.num_components - 1) for block in blocks
        }
        ranges["mark"] = IntDistribution(0, self.curves.marks[-1])
        return Job(lambda: self._train(asked), f"path-{spelled(path)}", {**blocks, "mark": mark}, ranges)

    def _share(self, asked: Shared) -> Done:
        scores = shared_scores(self.objective, asked).points.values()
        return Done(min((point.loss for point in scores), default=math.inf), {})

    def _train(self, asked: Request) -> Done:
        try:
            points = self.objective.advance(*asked)
        except Failed as failure:
            raise JobFailed(str(failure), {_POINTS: [point.to_dict() for point in failure.points]}) from failure
        return Done(points[-1].loss, {_POINTS: [point.to_dict() for point in points]})


def _name(asked: Request | Shared) -> str:
    if isinstance(asked, Shared):
        return f"{asked.units:g} units of shared weights, {asked.sampling}"
    path, mark = asked
    return f"{spelled(path)} to mark {mark}"
