"""State-optimal fits: what state buys at equal FLOPs.

At each budget the compute-optimal perplexity of architectures is a power of the state that they keep,
``exp(loss) ∝ M^c`` (Poli et al. 2024, c about -.28): loss in nats is a line in ln M, of one slope c at all budgets and
a level of its own at each. M counts numbers, fixed state and keys and values at the length that the table is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from manticore.errors import ManticoreError
from manticore.experiments.fits.bootstrap import Estimate, check_bootstrap, estimate
from manticore.experiments.fits.isoflop import IsoFlops, Minimum, of_equal_flops

FEWEST = 3


@dataclass(frozen=True)
class StateFit:
    """What :func:`state_optimal` found.

    Attributes:
        exponent: c of ``exp(loss) ∝ M^c``, of all budgets together.
        by_budget: c of each budget alone, without an interval.
        points: the minima that it was fitted to.
        left_out: architectures without a minimum among their sizes or without state, and why.
    """

    exponent: Estimate
    by_budget: dict[float, float]
    points: list[Minimum]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return asdict(self) | {"by_budget": {f"{flops:.6g}": c for flops, c in self.by_budget.items()}}


def state_optimal(
    table: IsoFlops, *, tolerance: float = 0.05, resamples: int = 1000, inside: float = 0.95, seed: int = 0
) -> StateFit:
    """Fit compute-optimal loss against the state of the compute-optimal model.

    Intervals come from drawing architectures anew, for these are what differs: they say how far the slope hangs on
    which architectures were compared.

    Args:
        table: of :func:`isoflops`, from runs that say their state.
        tolerance: minima whose FLOPs differ by no more than this share are of one budget.
        resamples: replicates for the interval.
        inside: probability that it is to hold the truth with.
        seed: of the replicates.

    Raises:
        ManticoreError: no budget has three architectures of different state.
    """
    check_bootstrap("state_optimal", resamples, inside)
    left_out: dict[str, str] = {}
    usable: list[Minimum] = []
    for minimum in table.minima:
        if minimum.edge is not None:
            left_out.setdefault(minimum.architecture, f"its minimum at {minimum.flops:.3g} FLOPs is {minimum.edge}")
        elif minimum.loss is None or not minimum.state or minimum.state < 1:
            left_out.setdefault(minimum.architecture, "it keeps no state, or its runs do not say")
        else:
            usable.append(minimum)
    budgets = [
        group for group in of_equal_flops(usable, tolerance) if len({round(m.state or 0, 3) for m in group}) >= FEWEST
    ]
    if not budgets:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise ManticoreError(
            f"state_optimal: no budget has {FEWEST} architectures of different state with a minimum among their sizes"
            f"{f' ({why})' if why else ''}. Fix: more architectures at equal FLOPs, with `state` in their runs"
        )
    names = sorted({m.architecture for group in budgets for m in group})
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(names), [1 / len(names)] * len(names), size=resamples)
    again = np.array([_slope(budgets, dict(zip(names, row))) for row in counts])
    return StateFit(
        estimate(_slope(budgets, dict.fromkeys(names, 1)), again, inside),
        {group[0].flops: _slope([group], dict.fromkeys(names, 1)) for group in budgets},
        [m for group in budgets for m in group],
        left_out,
    )


def _slope(budgets: Sequence[Sequence[Minimum]], times: dict[str, int]) -> float:
    """The common slope, each architecture counted so often; NaN where no two differ."""
    above = below = 0.0
    for group in budgets:
        weight = np.array([times[m.architecture] for m in group], dtype=float)
        if np.count_nonzero(weight) < 2:
            continue
        state = np.log([m.state or 1.0 for m in group])
        loss = np.array([m.loss.value for m in group if m.loss is not None])
        state = state - np.average(state, weights=weight)
        loss = loss - np.average(loss, weights=weight)
        above += float(weight @ (state * loss))
        below += float(weight @ state**2)
    return above / below if below > 1e-12 else float("nan")
