"""A search and its storage: trains the candidates that a method asks for, and remembers their points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as Folder
from typing import Any

from manticore.experiments.side_by_side import side_by_side
from manticore.runs.ledger import RunLog
from manticore.search.choice import Choice, Request, Search, Shared
from manticore.search.curves import Curves, Point
from manticore.search.objective import Failed, Objective
from manticore.search.shared import shared_scores
from manticore.search.space import Path, spelled

logger = logging.getLogger(__name__)

STUDY = "study.jsonl"

Told = Callable[[int, str], None]
"""Called with (evaluations done, what was done last)."""


class Study:
    """Runs a method to its choice.

    Args:
        objective: trains and scores a candidate.
        curves: filled on the way.
        folder: of the storage.
        key: everything that the points depend on beside their candidates and marks.
        inputs: digests of what is read.
        workers: candidates that train at the same time, each in a process with one thread.
        told: told about every evaluation.
    """

    def __init__(
        self,
        objective: Objective,
        curves: Curves,
        *,
        folder: Folder,
        key: Mapping[str, Any],
        inputs: Mapping[str, str],
        resume: bool,
        workers: int = 1,
        told: Told | None = None,
    ) -> None:
        self.objective, self.curves, self._workers, self._told = objective, curves, workers, told
        self._log = RunLog(folder / STUDY, key, inputs, resume=resume, stage="search")
        self._done = 0

    def run(self, search: Search) -> Choice:
        """Answer a method's requests until it has chosen."""
        try:
            while True:
                asked = next(search)
                if isinstance(asked, Shared):
                    # keeps a ledger of its own
                    self.curves.shared = shared_scores(self.objective, asked)
                    self._tell(f"{len(self.curves.shared.points)} paths with shared weights")
                else:
                    self.make(asked)
        except StopIteration as end:
            choice: Choice = end.value
            return choice

    def make(self, requests: Sequence[Request]) -> None:
        """Train candidates to marks, as far as that was not done before; the curves hold their points afterwards."""
        wanted = [request for request in requests if request[0] not in self.curves.failed]
        missing = [request for request in wanted if self._log.get(_name(request)) is None]
        if self._workers > 1 and len(missing) > 1:
            for request, found in side_by_side(self._answer, missing, self._workers):
                self._keep(request, found)
        else:
            for request in missing:
                self._keep(request, self._answer(request))
        for path, mark in wanted:
            self._show(path, self._log.get(_name((path, mark))) or {})

    def _show(self, path: Path, found: Mapping[str, Any]) -> None:
        """Put what is known of a candidate into the curves."""
        if "failed" in found:
            self.curves.failed[path] = found["failed"]
        for point in found.get("points", []):
            self.curves.add(path, Point.read(point))

    def _answer(self, request: Request) -> dict[str, Any]:
        try:
            return {"points": [point.to_dict() for point in self.objective.advance(*request)]}
        except Failed as failure:
            return {"failed": str(failure)}

    def _keep(self, request: Request, found: Mapping[str, Any]) -> None:
        self._log.add(_name(request), found)
        self._show(request[0], found)
        self._done += 1
        if "failed" in found:
            logger.warning("search: path %s: %s; the search goes on without it", spelled(request[0]), found["failed"])
        self._tell(_name(request))

    def _tell(self, what: str) -> None:
        if self._told is not None:
            self._told(self._done, what)


def _name(request: Request) -> str:
    path, mark = request
    return f"{spelled(path)} to mark {mark}"
