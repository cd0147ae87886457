"""What a run tells whoever watches it."""

from __future__ import annotations

import logging
from typing import Protocol

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Receives a run's events, in order."""

    def started(self, stage: str, plan: str) -> None:
        """A stage begins; ``plan`` says what it will do."""

    def skipped(self, stage: str, seconds: float, outcome: str) -> None:
        """A stage was finished by an earlier session, in ``seconds``."""

    def finished(self, stage: str, seconds: float, outcome: str) -> None:
        """A stage is done; ``outcome`` is its result in a few words."""

    def progress(self, what: str, step: int, steps: int, loss: float | None) -> None:
        """A step of the current stage is done."""


class LogReporter:
    """Sends every event to the log: for runs started from Python."""

    def started(self, stage: str, plan: str) -> None:
        logger.info("%s: %s", stage, plan)

    def skipped(self, stage: str, seconds: float, outcome: str) -> None:
        logger.info("%s: done before (%.1f s): %s", stage, seconds, outcome)

    def finished(self, stage: str, seconds: float, outcome: str) -> None:
        logger.info("%s: %.1f s: %s", stage, seconds, outcome)

    def progress(self, what: str, step: int, steps: int, loss: float | None) -> None:
        logger.debug("%s: step %d of %d, loss %s", what, step, steps, loss)
