"""Components that are fresh layers beside a parent, as their names say it. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manticore import registry
from manticore.errors import ManticoreError

PREFIX = "fresh:"


def is_branch(source: Any) -> bool:
    """Whether a component is one by its name."""
    return isinstance(source, str) and source.startswith(PREFIX)


@dataclass(frozen=True)
class Branch:
    """A fresh branch as a component of :func:`manticore.combine` names it: ``fresh:LAYER``, ``fresh:LAYER+LAYER@1``."""

    layers: tuple[str, ...]
    """What each block holds."""
    of: int
    """Index of the component that it stands beside."""

    @classmethod
    def read(cls, models: Sequence[Any]) -> dict[int, Branch]:
        """The fresh ones among components, by their indices.

        Args:
            models: as combine is given them.

        Raises:
            ManticoreError: unknown layers, no parent, or one that there is not.
        """
        parents = [k for k, each in enumerate(models) if not is_branch(each)]
        return {k: cls.named(each, parents) for k, each in enumerate(models) if is_branch(each)}

    @classmethod
    def named(cls, text: str, parents: Sequence[int]) -> Branch:
        """One of them, beside one of the components that are none."""
        names, sign, of = text.removeprefix(PREFIX).partition("@")
        if not parents or (sign and of not in map(str, parents)):
            expected = f"one of {list(parents)}" if parents else "a checkpoint beside it"
            raise ManticoreError(
                f"combine: {text} stands beside no parent (expected {expected}). Fix: such as {PREFIX}{names}@0"
            )
        for name in names.split("+"):
            if (why := registry.refusal("layer", name)) is not None:
                raise ManticoreError(why)
        return cls(tuple(names.split("+")), int(of) if sign else parents[0])
