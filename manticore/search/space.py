"""What a search can choose: paths through the blocks of a hybrid, one component per block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from manticore.cache import content_key
from manticore.errors import ManticoreError

Path = tuple[int, ...]
"""One component index per block."""

Scores: TypeAlias = Sequence[Sequence[float]]
"""``[N][K]``: of each component in each block."""

MOST_PATHS = 1_000_000
"""More are not listed: no search could train a share of them worth the name."""


class Rule(Protocol):
    """Tells which paths may be chosen, where they are too many to list."""

    def __contains__(self, path: object) -> bool: ...

    def best(self, scores: Scores) -> Path:
        """The allowed path with the largest sum of scores."""

    @property
    def key(self) -> object:
        """What it depends on, as JSON values."""


Allowed: TypeAlias = frozenset[Path] | Rule


@dataclass(frozen=True)
class Space:
    """Paths over ``num_components`` components and ``num_blocks`` blocks."""

    num_blocks: int
    num_components: int
    allowed: Allowed | None = None
    """The paths that may be chosen; None: all. Parents are always among what a search looks at."""

    fresh: frozenset[int] = frozenset()
    """Components whose own paths are no parents, since they were made beside one."""

    @property
    def size(self) -> int:
        """How many paths may be chosen; at most so many, where they are too many to list."""
        return len(self.allowed) if isinstance(self.allowed, frozenset) else self.num_components**self.num_blocks

    @property
    def listed(self) -> list[Path] | None:
        """The paths that alone may be chosen, where that is a list."""
        return sorted(self.allowed) if isinstance(self.allowed, frozenset) else None

    @property
    def key(self) -> str | None:
        """Stands for what may be chosen; None: all."""
        if self.allowed is None:
            return None
        return content_key(self.listed if isinstance(self.allowed, frozenset) else self.allowed.key)

    @property
    def parents(self) -> list[Path]:
        """The paths that are one pretrained component throughout."""
        return [path for path in self.alone if path[0] not in self.fresh]

    @property
    def alone(self) -> list[Path]:
        """The paths that are one component throughout, among them the dearest of all but for projectors."""
        return [(k,) * self.num_blocks for k in range(self.num_components)]

    def paths(self) -> list[Path]:
        """All paths that may be chosen, parents first.

        Raises:
            ManticoreError: they are too many to list.
        """
        if self.num_components**self.num_blocks > MOST_PATHS:
            raise ManticoreError(
                f"search: {self.num_components} components in {self.num_blocks} blocks have "
                f"{self.num_components**self.num_blocks:.3g} paths (at most {MOST_PATHS:,} are listed). "
                "Fix: method='blockwise', or fewer blocks"
            )
        every = itertools.product(range(self.num_components), repeat=self.num_blocks)
        found = [path for path in every if self.allowed is None or path in self.allowed]
        parents = set(self.parents)
        return sorted(found, key=lambda path: (path not in parents, path))

    def may_choose(self, path: Path) -> bool:
        """Whether a path may be what the search finds."""
        return self.allowed is None or path in self.allowed

    def nearest(self, path: Path) -> Path:
        """The path that may be chosen and has the most blocks in common with one that perhaps may not."""
        return path if self.may_choose(path) else self.best(self._in_common(path))

    def best(self, scores: Scores) -> Path:
        """The path that may be chosen with the largest sum of scores; of equals the first by its indices."""
        if self.allowed is None:
            return tuple(max(range(self.num_components), key=row.__getitem__) for row in scores)
        if isinstance(self.allowed, frozenset):
            return min(self.allowed, key=lambda path: (-math.fsum(row[k] for row, k in zip(scores, path)), path))
        return self.allowed.best(scores)

    def _in_common(self, path: Path) -> Scores:
        """Scores by which a path has as many as it has blocks in common with this one."""
        return [[float(k == own) for k in range(self.num_components)] for own in path]

    def flips(self, path: Path, blocks: tuple[int, ...]) -> Iterator[Path]:
        """The paths that have one other component in all of these blocks."""
        for k in range(self.num_components):
            other = tuple(k if n in blocks else m for n, m in enumerate(path))
            if other != path and self.may_choose(other):
                yield other


def handovers(path: Path) -> int:
    """How often a path goes from one component to another."""
    return sum(a != b for a, b in itertools.pairwise(path))


def path_text(path: Sequence[int], names: Sequence[str]) -> str:
    """``mamba → gpt``: the components of a path, each once where it keeps several blocks in a row."""
    return " → ".join(names[k] for k, _ in itertools.groupby(path))


def spelled(path: Path) -> str:
    """A path as it stands in file names and records: ``0-1``."""
    return "-".join(map(str, path))
