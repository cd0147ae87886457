"""IsoFLOP curves: loss against size at equal FLOPs, its minimum, and how that grows with FLOPs.

Per architecture and budget a parabola in the logarithm of the size, ``loss = floor + bend · (ln N - ln N*)²``; N* is
the size that is best at those FLOPs. Over budgets C a power law each, ``N* ∝ C^a`` and ``D* ∝ C^b`` for its tokens
(Hoffmann et al. 2022, approach 2; Poli et al. 2024).

Intervals: residuals of all parabolas of an architecture are drawn anew around them, as large as their degrees of
freedom say; how large noise is, is itself drawn, since few residuals hardly tell. Every replicate is fitted whole, from
parabolas to exponents. The noise is taken to be the same at every budget and size of an architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from manticore.errors import ManticoreError
from manticore.experiments.fits.bootstrap import Estimate, check_bootstrap, estimate
from manticore.experiments.fits.ledger import Run, read_runs
from manticore.making import checked
from manticore.option_types import Flops, Wanted

_COEFFICIENTS = 3
_Tolerance = Annotated[float, Field(ge=0, lt=1), Wanted("from 0 to below 1", "0.05")]
Edge = Literal["below the smallest", "above the largest", "nowhere"]


@dataclass(frozen=True)
class Minimum:
    """The best size of an architecture at one budget.

    Attributes:
        flops: the budget, the geometric mean of its runs'.
        parameters, tokens, loss: at the minimum; None where there is none.
        state: numbers that decoding keeps there; None where a run does not say.
        sizes: smallest and largest that were trained.
        edge: where the minimum lies if not among those sizes; such a one is a guess, and no exponent is fitted to it.
    """

    architecture: str
    flops: float
    parameters: Estimate | None
    tokens: Estimate | None
    loss: Estimate | None
    state: float | None
    sizes: tuple[float, float]
    edge: Edge | None


@dataclass(frozen=True)
class Exponents:
    """How the best size and its tokens grow with FLOPs.

    ``N* = size_factor · C^size``, ``D* = data_factor · C^data``.
    """

    architecture: str
    size: Estimate
    data: Estimate
    size_factor: float
    data_factor: float
    budgets: tuple[float, ...]
    """FLOPs of the budgets that it was fitted to."""

    @checked("isoflops: best")
    def best(self, flops: Flops) -> tuple[float, float]:
        """Parameters and tokens that are best with so many FLOPs.

        Raises:
            ManticoreError: no positive number.
        """
        return self.size_factor * flops**self.size.value, self.data_factor * flops**self.data.value


@dataclass(frozen=True)
class IsoFlops:
    """What :func:`isoflops` found.

    Attributes:
        minima: one per architecture and budget.
        exponents: by architecture, of those with two or more budgets whose minimum is among their sizes.
        notes: what was left out of an exponent, and why, a sentence each.
    """

    minima: list[Minimum]
    exponents: dict[str, Exponents]
    notes: list[str] = field(default_factory=list)

    @checked("isoflops: best_loss")
    def best_loss(self, architecture: str, flops: Flops | None = None) -> float:
        """The compute-optimal loss of an architecture at a budget; of its largest where none is given.

        Raises:
            ManticoreError: there is none.
        """
        own = [m for m in self.minima if m.architecture == architecture and m.loss is not None]
        found = [m for m in own if flops is None or abs(m.flops / flops - 1) < 0.05]
        if not found:
            known = ", ".join(f"{m.architecture} at {m.flops:.3g}" for m in own or self.minima)
            wanted = architecture if flops is None else f"{architecture} at {flops:.3g} FLOPs"
            raise ManticoreError(f"isoflops: no curve of {wanted} (there are: {known}). Fix: one of those")
        best = max(found, key=lambda m: m.flops).loss
        assert best is not None
        return best.value

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return asdict(self)


@checked("isoflops")
def isoflops(
    runs: str | Path | Iterable[Mapping[str, Any] | Run],
    *,
    tolerance: _Tolerance = 0.05,
    resamples: int = 1000,
    inside: float = 0.95,
    seed: int = 0,
) -> IsoFlops:
    """Fit isoFLOP curves and the exponents of the best size and its tokens.

    Args:
        runs: a table (:func:`read_runs`); several seeds of a size are rows of their own.
        tolerance: runs whose FLOPs differ by no more than this share are of one budget.
        resamples: replicates for intervals.
        inside: probability that an interval is to hold the truth with.
        seed: of the replicates.

    Raises:
        ManticoreError: a row of the table is wrong, or a curve has fewer than three sizes.
    """
    check_bootstrap("isoflops", resamples, inside)
    by_architecture: dict[str, list[Run]] = {}
    for run in read_runs(runs):
        by_architecture.setdefault(run.architecture, []).append(run)
    found = IsoFlops([], {})
    for architecture, own in by_architecture.items():
        curves = [_Curve(architecture, group) for group in of_equal_flops(own, tolerance)]
        generator = np.random.default_rng([seed, *architecture.encode()])
        _fit(architecture, curves, _replicates(curves, resamples, generator), inside, found)
    return found


E = TypeVar("E", Run, Minimum)


class _Curve:
    """The runs of one architecture at one budget, and the parabola through them."""

    def __init__(self, architecture: str, runs: Sequence[Run]) -> None:
        self.flops = float(np.exp(np.mean([np.log(run.flops) for run in runs])))
        sizes = len({run.parameters for run in runs})
        if sizes < _COEFFICIENTS:
            raise ManticoreError(
                f"isoflops: {architecture} has {sizes} size{'s' * (sizes != 1)} at {self.flops:.3g} FLOPs (a parabola "
                "takes three or more). Fix: train more sizes at those FLOPs, or give a larger tolerance"
            )
        self.sizes = (min(run.parameters for run in runs), max(run.parameters for run in runs))
        size = np.log([run.parameters for run in runs])
        # around the middle, where products of logarithms do not lose digits
        self._middle = float(size.mean())
        self._from_middle = size - self._middle
        self._design = np.vander(self._from_middle, _COEFFICIENTS)
        self._losses = np.array([run.loss for run in runs])
        self._tokens = np.log([run.tokens for run in runs])
        states = [run.state for run in runs]
        self._state = np.log([max(s, 1e-9) for s in states if s is not None]) if None not in states else None
        self.coefficients = self.fitted(self._losses[None])[0]
        self.predicted = self._design @ self.coefficients
        self.residuals = self._losses - self.predicted
        self.freedom = len(runs) - _COEFFICIENTS

    def fitted(self, losses: np.ndarray) -> np.ndarray:
        """``[replicates, 3]`` coefficients of parabolas through ``[replicates, runs]`` losses."""
        return np.linalg.lstsq(self._design, losses.T, rcond=None)[0].T

    def lowest(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``ln N*``, ``ln D*`` and the loss there, per row of coefficients; NaN where a parabola has no minimum."""
        bend, slope, level = np.atleast_2d(coefficients).T
        at = np.where(bend > 0, -slope / np.where(bend > 0, 2 * bend, 1.0), np.nan)
        # at equal FLOPs the logarithm of tokens is nearly a line in that of the size
        return at + self._middle, self._along(self._tokens, at), level + slope * at / 2

    def state(self, at: float) -> float | None:
        """The state of the size whose logarithm is given."""
        if self._state is None:
            return None
        return float(np.exp(self._along(self._state, np.array(at - self._middle))))

    def _along(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        slope, level = np.polyfit(self._from_middle, values, 1)
        return slope * at + level


def of_equal_flops(entries: Iterable[E], tolerance: float) -> list[list[E]]:
    """Runs or minima in groups of equal FLOPs, smallest first."""
    groups: list[list[E]] = []
    for entry in sorted(entries, key=lambda each: each.flops):
        if groups and entry.flops <= groups[-1][0].flops * (1 + tolerance):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _replicates(curves: Sequence[_Curve], resamples: int, generator: np.random.Generator) -> list[np.ndarray] | None:
    """Per curve ``[resamples, 3]`` coefficients; None where no residual tells how large the noise is."""
    freedom = sum(curve.freedom for curve in curves)
    if freedom == 0:
        return None
    residuals = np.concatenate([curve.residuals for curve in curves])
    # a fit takes up a part of the noise that its points have
    residuals *= np.sqrt(len(residuals) / freedom)
    scale = np.sqrt(freedom / generator.chisquare(freedom, size=(resamples, 1)))
    return [
        curve.fitted(curve.predicted + scale * generator.choice(residuals, (resamples, len(curve.predicted))))
        for curve in curves
    ]


def _fit(
    architecture: str, curves: Sequence[_Curve], replicates: list[np.ndarray] | None, inside: float, found: IsoFlops
) -> None:
    """Add an architecture's minima and exponents to what was found."""
    own, drawn, best_sizes, best_tokens = [], [], [], []
    for index, curve in enumerate(curves):
        best = curve.lowest(curve.coefficients)
        size, tokens, loss = (float(value[0]) for value in best)
        again = curve.lowest(replicates[index]) if replicates is not None else (None, None, None)
        edge = _edge(size, curve.sizes)
        known = edge != "nowhere"
        own.append(
            Minimum(
                architecture,
                curve.flops,
                _exponential(estimate(size, again[0], inside)) if known else None,
                _exponential(estimate(tokens, again[1], inside)) if known else None,
                estimate(loss, again[2], inside) if known else None,
                curve.state(size) if known else None,
                curve.sizes,
                edge,
            )
        )
        best_sizes.append(size)
        best_tokens.append(tokens)
        drawn.append(again)
        if edge is not None:
            low, high = curve.sizes
            sizes_trained = f"{low:.3g} to {high:.3g} parameters"
            found.notes.append(
                f"{architecture} at {curve.flops:.3g} FLOPs: "
                + (
                    f"no minimum, the losses of {sizes_trained} do not bend upwards"
                    if edge == "nowhere"
                    else f"the minimum lies {edge} size trained ({sizes_trained})"
                )
                + ", so it is in no exponent. Fix: more sizes beyond that end, or more seeds"
            )
    found.minima.extend(own)
    kept = [index for index, minimum in enumerate(own) if minimum.edge is None]
    if len(kept) < 2:
        if len(own) > 1:
            found.notes.append(f"{architecture}: no exponents, since fewer than two budgets have a minimum among sizes")
        return
    budgets = np.log([own[index].flops for index in kept])
    sizes = _power(budgets, [best_sizes[index] for index in kept])
    data = _power(budgets, [best_tokens[index] for index in kept])
    again_sizes = again_data = None
    if replicates is not None:
        again_sizes = _power(budgets, [drawn[index][0] for index in kept])[0]
        again_data = _power(budgets, [drawn[index][1] for index in kept])[0]
    found.exponents[architecture] = Exponents(
        architecture,
        estimate(float(sizes[0]), again_sizes, inside),
        estimate(float(data[0]), again_data, inside),
        float(np.exp(sizes[1])),
        float(np.exp(data[1])),
        tuple(own[index].flops for index in kept),
    )


def _power(budgets: np.ndarray, values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Slope and level of the line through logarithms, for each replicate."""
    stacked = np.array(values)
    centred = budgets - budgets.mean()
    slope = np.tensordot(centred, stacked, 1) / (centred @ centred)
    return slope, stacked.mean(0) - slope * budgets.mean()


def _edge(size: float, sizes: tuple[float, float]) -> Edge | None:
    if not np.isfinite(size):
        return "nowhere"
    low, high = sizes
    return "below the smallest" if np.exp(size) < low else "above the largest" if np.exp(size) > high else None


def _exponential(found: Estimate) -> Estimate:
    value = float(np.exp(found.value))
    if found.interval is None:
        return Estimate(value)
    low, high = found.interval
    # far outside of what was measured a parabola that is nearly flat has its minimum anywhere
    return Estimate(value, (float(np.exp(min(low, 700.0))), float(np.exp(min(high, 700.0)))))
