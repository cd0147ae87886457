"""What is wrong with a recipe: every problem at once, one line each.

A line reads ``file:line: path: problem (got X, expected Y). Did you mean …? Fix: …``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manticore.errors import SeveralErrors

Path = tuple[str | int, ...]
"""The way to a value in a recipe: ``("components", 1, "source")``."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written."""

    source: str
    """The file, or ``"override 'key=value'"``."""
    line: int = 0
    """Line number, from 1; 0 where there is none."""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    place: Place
    path: Path
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), dotted(self.path), self.text) if part)


class RecipeError(SeveralErrors):
    """A recipe that cannot be used; ``str()`` has one line per problem."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.place)
        super().__init__([str(problem) for problem in self.problems])


def dotted(path: Path) -> str:
    """``("components", 1, "source")`` → ``"components[1].source"``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """A value as an error message quotes it: short, on one line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
