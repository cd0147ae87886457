"""Records of what the models of a comparison write by themselves; every field has a default, as in all records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from manticore.stages.records import Record

LINE_END = "↵"


class Passage(str):
    """A piece of text on one line, in which ends of lines can be seen."""

    @classmethod
    def from_json(cls, reader: Any, value: Any, at: str) -> Passage:
        """Read it.

        Args:
            reader: of a file with records.
            value: as JSON gives it.
            at: its place in the file, for messages.
        """
        return cls(reader.read(str, value.replace("\n", LINE_END) if isinstance(value, str) else value, at))


_NOTHING = Passage()


@dataclass(frozen=True)
class Sample:
    """What a model writes after a prompt; no record, whose method ``written`` has the name of a field."""

    prompt: Passage = _NOTHING
    expected: Passage = _NOTHING
    written: Passage = _NOTHING


@dataclass(frozen=True)
class Recall(Record):
    """How often what lies in a text of so many tokens is found again."""

    length: int = 0
    share: float | None = None
    examples: int = 0


@dataclass(frozen=True)
class Speed(Record):
    """Generation of one sequence, after a prompt of so many tokens."""

    context: int = 0
    first_token_ms: float | None = None
    tokens_per_second: float | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True)
class Generated(Record):
    """Scores of what a model writes, greedily."""

    exact_match: float | None = None
    examples: int = 0
    samples: tuple[Sample, ...] = ()
    recall: tuple[Recall, ...] = ()
    speed: tuple[Speed, ...] = ()


@dataclass(frozen=True)
class Writing(Record):
    """What one model writes, before any training or after a budget."""

    model: str = ""
    budget: int | None = None
    """Index; None: as it was downloaded."""
    seed: int | None = None
    generated: Generated = field(default_factory=Generated)
    left_out: str = ""
    """Why there is nothing."""
