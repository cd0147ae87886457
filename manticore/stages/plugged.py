"""A stage that another package brings, as a run sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from manticore import registry
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.records import PLUGGED, PluggedRecord
from manticore.stages.stage import Stage, StagePlan

if TYPE_CHECKING:
    from pathlib import Path

    from manticore.plan.costing import Costing
    from manticore.stages.run import Run

KIND = "stage"


class Plugged(Stage):
    """Whatever the stage raises is told with its package, and what it found stands under its name in one place.

    It writes into its own folder alone: what built-in stages read stays theirs.

    Args:
        name: of the stage.
        places: names of the stages that it may come after.

    Raises:
        ManticoreError: it is not installed, cannot be made, is not a stage, or comes after none of these.
    """

    def __init__(self, name: str, places: list[str]) -> None:
        self.name = name
        made = registry.resolve(KIND, name)
        with registry.blaming(KIND, name):
            stage = made()
        if not isinstance(stage, Stage):
            raise registry.at_fault(KIND, name, "is not a manticore.stages.stage.Stage")
        if stage.after not in places:
            hint = registry.did_you_mean(stage.after, places)
            raise registry.at_fault(KIND, name, f"comes after {stage.after!r}, which is not a stage{hint}")
        self._stage = stage
        self.after = stage.after
        self.package = registry.entries(KIND)[name].package or ""

    def plan_line(self, recipe: Recipe) -> str:
        with registry.blaming(KIND, self.name):
            return self._stage.plan_line(recipe)

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        with registry.blaming(KIND, self.name):
            asked = self._stage.inputs(recipe)
        # another version of the package may find something else
        return {**asked, "package": [self.package, version(self.package) if self.package else ""]}

    def read(self, run: Run) -> Mapping[str, str | None]:
        with registry.blaming(KIND, self.name):
            return self._stage.read(run)

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        with registry.blaming(KIND, self.name):
            yield from self._stage.cost(costing)

    def work(self, run: Run, folder: Path) -> Outcome:
        with registry.blaming(KIND, self.name):
            outcome = self._stage.work(run, folder)
        if not isinstance(outcome, Outcome) or not all(map(_is_plain, outcome.results.values())):
            raise registry.at_fault(KIND, self.name, "returns no Outcome of texts, finite numbers, true, false or None")
        record = PluggedRecord.written(package=self.package, summary=outcome.summary, values=outcome.results)
        return Outcome({PLUGGED: {self.name: record}}, outcome.summary)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
