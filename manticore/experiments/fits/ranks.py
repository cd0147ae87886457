"""Whether one score ranks as another does: Spearman's and Kendall's correlation, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np

from manticore.errors import ManticoreError
from manticore.experiments.fits.bootstrap import Estimate, check_bootstrap, estimate, finite

FEWEST = 3
_EXACT = 7
"""Pairs up to which all orders are tried for the p-value."""


@dataclass(frozen=True)
class RankCorrelation:
    """What :func:`rank_correlation` found.

    Attributes:
        correlation: from -1, opposite orders, to 1, the same. Its interval comes from drawing pairs anew. Where the
            order is the same throughout, every draw has it too: then the interval is a point, and the p-value says
            how little that means for few pairs.
        p_value: how often orders drawn at random agree or disagree as much (two-sided; all orders for up to 7 pairs).
        pairs: that were compared.
    """

    method: str
    correlation: Estimate
    p_value: float
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return asdict(self)


def rank_correlation(
    first: Mapping[str, float] | Sequence[float],
    second: Mapping[str, float] | Sequence[float],
    method: Literal["spearman", "kendall"] = "spearman",
    *,
    resamples: int = 1000,
    inside: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """The rank correlation of two scores of the same things. Ties count as ties (average ranks; tau-b).

    Args:
        first: one score of each, by name or in order.
        second: the other, of the same names or in the same order.
        method: spearman or kendall.
        resamples: replicates for the interval, and orders drawn for the p-value where there are too many to try.
        inside: probability that the interval is to hold the truth with.
        seed: of what is drawn.

    Raises:
        ManticoreError: fewer than three pairs, different names or lengths, a score that is no number, a score that is
            the same for all; scipy is not installed.
    """
    check_bootstrap("rank_correlation", resamples, inside)
    if method not in ("spearman", "kendall"):
        raise ManticoreError(f"rank_correlation: method is {method!r} (expected 'spearman' or 'kendall')")
    a, b = _paired(first, second)
    correlate = _correlate(method)
    generator = np.random.default_rng(seed)
    value = correlate(a, b)
    drawn = generator.integers(len(a), size=(resamples, len(a)))
    again = np.array([correlate(a[row], b[row]) for row in drawn])
    return RankCorrelation(
        method, estimate(value, again, inside), _p_value(correlate, a, b, value, resamples, generator), len(a)
    )


def _paired(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(first, Mapping) != isinstance(second, Mapping):
        raise ManticoreError("rank_correlation: one score is by name, the other is not. Fix: both by name, or in order")
    if isinstance(first, Mapping):
        if odd := sorted(set(first) ^ set(second)):
            raise ManticoreError(f"rank_correlation: {odd[0]!r} has one of the scores. Fix: both, or leave it out")
        first, second = list(first.values()), [second[name] for name in first]
    first, second = list(first), list(second)
    if len(first) != len(second):
        raise ManticoreError(
            f"rank_correlation: {len(first)} and {len(second)} scores. Fix: one of each for everything"
        )
    if len(first) < FEWEST:
        raise ManticoreError(f"rank_correlation: {len(first)} pairs (expected {FEWEST} or more). Fix: more of them")
    for scores in (first, second):
        for place, score in enumerate(scores):
            number = score.item() if isinstance(score, np.generic) else score
            if not finite(number):
                raise ManticoreError(f"rank_correlation: score {place + 1} is {score!r}. Fix: leave that pair out")
        if len(set(scores)) == 1:
            raise ManticoreError(f"rank_correlation: all scores are {scores[0]:g}, which ranks nothing")
    return np.array(first, dtype=float), np.array(second, dtype=float)


def _correlate(method: str) -> Callable[[np.ndarray, np.ndarray], float]:
    try:
        from scipy.stats import kendalltau, rankdata
    except ImportError as error:
        raise ManticoreError(
            f"fits: scipy, which ranks, cannot be imported ({error}). Fix: pip install 'manticore-hybrids[design]'"
        ) from error

    def tau(a: np.ndarray, b: np.ndarray) -> float:
        if len(set(a)) == 1 or len(set(b)) == 1:
            return float("nan")
        return float(kendalltau(a, b, method="asymptotic").statistic)

    def rho(a: np.ndarray, b: np.ndarray) -> float:
        first, second = rankdata(a), rankdata(b)
        first, second = first - first.mean(), second - second.mean()
        size = np.sqrt((first @ first) * (second @ second))
        return float(first @ second / size) if size else float("nan")

    return tau if method == "kendall" else rho


def _p_value(
    correlate: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    value: float,
    resamples: int,
    generator: np.random.Generator,
) -> float:
    as_much = abs(value) - 1e-12
    if len(a) <= _EXACT:
        every = [abs(correlate(a, b[list(order)])) >= as_much for order in permutations(range(len(b)))]
        return sum(every) / len(every)
    drawn = [abs(correlate(a, generator.permutation(b))) >= as_much for _ in range(resamples)]
    # the order that was found is one of them
    return (1 + sum(drawn)) / (1 + len(drawn))
