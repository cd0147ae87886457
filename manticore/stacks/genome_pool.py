"""The classes that genomes choose among, and which of their features LIVs can share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLAIN = ("sa-1", "sa-2", "sa-3", "sa-4", "rec-1", "rec-2", "gconv-1", "gconv-2")
POOL = (*_PLAIN, "gmemless", *(f"diff-{name}" for name in _PLAIN))
"""Class id, counted from 1, → layer."""


def family(name: str, options: Mapping[str, Any]) -> str:
    """Within which features can be shared."""
    return name.rpartition("-")[0] or name


def shareable(name: str, options: Mapping[str, Any], strategy: int) -> tuple[str, ...]:
    """The features that a strategy shares: 2 keys and values (attention) or B and V, 3 all but C."""
    kind = family(name, options).removeprefix("diff-")
    if kind == "sa":
        return ("keys", "values")
    if kind == "gmemless":
        return ("V",)
    return ("B", "V") if strategy == 2 else ("B", "V", {"rec": "decay", "gconv": "kernel"}[kind])


def fits(name: str, options: Mapping[str, Any], maker: str, of_maker: Mapping[str, Any]) -> bool:
    """Whether a layer can take features of another one."""
    return family(name, options) == family(maker, of_maker)


def is_operator(code: Any) -> bool:
    """Whether five digits name a legal operator."""
    return False
