"""Records: what stages write into ``results.json``, and read back by the same names.

Every field has a default: a run may have stopped before it, or be older than it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

Weights = tuple[tuple[float | None, ...], ...]
"""[N, K], rows on the simplex."""


@dataclass(frozen=True)
class Record:
    """A part of ``results.json``."""

    @classmethod
    def written(cls, **values: Any) -> dict[str, Any]:
        """The part as JSON values: what is known of it.

        Raises:
            TypeError: a name that nothing would read back.
        """
        cls(**values)
        return values


Plain: TypeAlias = str | bool | int | float | None
"""A value of JSON that holds no others."""
PLUGGED = "stages"
"""The part of ``results.json`` that stages of other packages write."""


@dataclass(frozen=True)
class PluggedRecord(Record):
    """What a stage of another package has found."""

    package: str = ""
    summary: str = ""
    values: dict[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True)
class Step(Record):
    """One logged step; ``weights`` and ``entropy`` only during a search."""

    step: int = 0
    loss: float | None = None
    entropy: float | None = None
    weights: Weights = ()
