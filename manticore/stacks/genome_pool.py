"""The classes that genomes choose among, and which of their features LIVs can share.

Without torch until sharing is asked about: layers themselves answer that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manticore.stacks.liv.codes import LEGAL, POOL

__all__ = ["POOL", "family", "fits", "is_operator", "shareable"]


def family(name: str, options: Mapping[str, Any]) -> str:
    """Within which features can be shared."""
    from manticore.stacks import catalogue

    return catalogue.family(name, options)


def shareable(name: str, options: Mapping[str, Any], strategy: int) -> tuple[str, ...]:
    """The features that a strategy shares: 2 keys and values (attention) or B and V, 3 all but C."""
    from manticore.stacks import catalogue

    return catalogue.shareable(name, options, strategy)


def fits(name: str, options: Mapping[str, Any], maker: str, of_maker: Mapping[str, Any]) -> bool:
    """Whether a layer can take features of another one."""
    from manticore.stacks import catalogue

    return catalogue.fits(name, options, maker, of_maker)


def is_operator(code: Any) -> bool:
    """Whether five digits name a legal operator."""
    return str(code) in LEGAL
