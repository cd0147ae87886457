"""A fitted number with an interval out of replicates of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from manticore.errors import ManticoreError

FEWEST = 50
"""Replicates below which an interval's ends are those of a few draws."""


@dataclass(frozen=True)
class Estimate:
    """A number that a fit found.

    Attributes:
        value: of the fit of all runs.
        interval: where it lies with the probability asked for, as replicates say; None where the runs do not tell.
    """

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.3g} (no interval)"
        low, high = self.interval
        return f"{self.value:.3g} ({low:.3g} to {high:.3g})"


def estimate(value: float, replicates: np.ndarray | None, inside: float) -> Estimate:
    """The estimate whose interval holds the middle of the replicates; those that are not finite do not count."""
    if replicates is None:
        return Estimate(float(value))
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < FEWEST:
        return Estimate(float(value))
    low, high = np.quantile(finite, [(1 - inside) / 2, (1 + inside) / 2])
    return Estimate(float(value), (float(low), float(high)))


def check_bootstrap(what: str, resamples: int, inside: float) -> None:
    """Refuse what no interval can be made of.

    Raises:
        ManticoreError: it is.
    """
    if resamples < FEWEST:
        raise ManticoreError(f"{what}: resamples is {resamples} (expected {FEWEST} or more). Fix: 1000, for instance")
    if not 0 < inside < 1:
        raise ManticoreError(f"{what}: inside is {inside:g} (expected between 0 and 1). Fix: 0.95, for instance")


def finite(number: object) -> TypeGuard[float]:
    """Whether it is a number that is neither NaN nor infinite."""
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
