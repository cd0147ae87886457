"""Named things that other packages bring: entry points of the group ``manticore.plugins``.

An entry point is called by kind and name, ``"projector.my-map" = "my_package:MyMap"``. Their names are read; a package
is imported when something of it is named.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "manticore.plugins"
KINDS = ("design", "layer", "mixing", "projector", "search", "space", "stage", "task")
"""The kinds that a package can add to."""


def plugins(kind: str) -> dict[str, list[EntryPoint]]:
    """Name → the entry points that ask for it, one unless packages are at odds."""
    found: dict[str, list[EntryPoint]] = {}
    for point in _installed(tuple(sys.path)):
        of_kind, _, name = point.name.partition(".")
        if of_kind == kind and kind in KINDS:
            found.setdefault(name, []).append(point)
    return found


def package(point: EntryPoint) -> str:
    """The name of the package that an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.module


def misnamed() -> list[str]:
    """Entry points that belong to no kind, as ``"'projecter.my-map' of package my-package"``."""
    points = _installed(tuple(sys.path))
    return [
        f"{point.name!r} of package {package(point)}" for point in points if point.name.partition(".")[0] not in KINDS
    ]


@lru_cache
def _installed(path: tuple[str, ...]) -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)
