"""What designs have scored, by which objectives they are compared, and who is on the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manticore.search.designs.space import Design, DesignSpace


@dataclass(frozen=True)
class Goal:
    """A measure that designs are judged by."""

    measure: str
    """Such as ``loss``, ``mad``, ``parameters`` or ``cache_bytes``."""
    maximise: bool = False


@dataclass
class Scores:
    """Every measure of every design that was scored."""

    space: DesignSpace
    goals: Sequence[Goal]
    limits: Mapping[str, float] = field(default_factory=dict)
    """Measure → the most that a design may have."""
    least: Mapping[str, float] = field(default_factory=dict)
    """Measure → the least that it must have."""
    found: dict[Design, dict[str, float]] = field(default_factory=dict)
    """In the order in which they were first asked for."""
    failed: dict[Design, str] = field(default_factory=dict)
    """Design → why it has no scores."""
    stopped: dict[Design, int] = field(default_factory=dict)
    """Design → tokens after which it was stopped as a poor one; its measures are those of that moment."""
    notes: dict[Design, dict[str, Any]] = field(default_factory=dict)
    """What the method says about a design: its generation, its parents, how it was made."""

    def values(self, design: Design) -> tuple[float, ...]:
        """One number per goal, the smaller the better; infinite where the design failed or its measure is none."""
        measures = self.found.get(design)
        if measures is None:
            return (math.inf,) * len(self.goals)
        numbers = (-measures[goal.measure] if goal.maximise else measures[goal.measure] for goal in self.goals)
        # a diverged training's loss would be neither above nor below another
        return tuple(math.inf if math.isnan(number) else number for number in numbers)

    def excess(self, design: Design) -> tuple[float, ...]:
        """By how much each limit is exceeded, or missed from below, as a share of it; 0 or less is within."""
        return self._excess(self.found.get(design, {}))

    def keeps_limits(self, measures: Mapping[str, float]) -> bool:
        """Whether what was measured is within all limits."""
        return all(each <= 0 for each in self._excess(measures))

    def _excess(self, measures: Mapping[str, float]) -> tuple[float, ...]:
        above = (measures.get(name, math.inf) / most - 1 for name, most in self.limits.items())
        below = (1 - measures.get(name, -math.inf) / least for name, least in self.least.items())
        return (*above, *below)

    def allowed(self, design: Design) -> bool:
        """Whether a design has scores, was trained to the end, keeps all limits, and is whole: incremental methods
        score parts as well."""
        whole = len(design) == len(self.space.values) and design not in self.stopped
        return whole and design in self.found and self.keeps_limits(self.found[design])

    def front(self) -> list[Design]:
        """The designs within the limits than which no other is as good everywhere and better somewhere."""
        chosen = [design for design in self.found if self.allowed(design)]
        values = {design: self.values(design) for design in chosen}
        return [one for one in chosen if not any(dominates(values[other], values[one]) for other in chosen)]

    def best(self) -> Design | None:
        """Of the front, the best by the first goal; None where nothing is within the limits."""
        return min(self.front(), key=self.values, default=None)


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether one is as good everywhere as the other, and better somewhere."""
    return one != other and all(a <= b for a, b in zip(one, other))
