"""The hypervolume: exact in two to four objectives, against drawn points and against its own laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manticore.experiments.hypervolume import front_of, history, hypervolume, reference_of

_GRID = st.integers(0, 4)


def _sets(objectives: int) -> st.SearchStrategy:
    return st.lists(st.tuples(*[_GRID] * objectives), max_size=7)


def _counted(points, reference) -> int:
    """Of the unit cells below the reference those that are dominated: exact for whole numbers."""
    cells = itertools.product(*(range(r) for r in reference))
    return sum(any(all(p <= c for p, c in zip(point, cell)) for point in points) for cell in cells)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), objectives=st.integers(1, 4))
def test_it_is_the_number_of_dominated_cells(data, objectives):
    points = data.draw(_sets(objectives))
    reference = data.draw(st.tuples(*[st.integers(1, 4)] * objectives))
    assert hypervolume(points, reference) == pytest.approx(_counted(points, reference))


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_it_agrees_with_monte_carlo(objectives):
    draws = np.random.default_rng(objectives)
    points, reference = draws.random((12, objectives)), np.full(objectives, 1.1)
    samples = draws.random((40_000, objectives)) * reference
    share = (points[None] <= samples[:, None]).all(2).any(1).mean()
    volume = math.prod(reference)
    error = volume * math.sqrt(share * (1 - share) / len(samples))
    assert abs(hypervolume(points, reference) - share * volume) < 4 * error


@settings(max_examples=40, deadline=None)
@given(points=_sets(3), more=st.tuples(_GRID, _GRID, _GRID))
def test_one_more_point_never_takes_away_and_a_dominated_one_adds_nothing(points, more):
    reference = (4, 4, 4)
    before, after = hypervolume(points, reference), hypervolume([*points, more], reference)
    assert after >= before
    if any(all(p <= m for p, m in zip(point, more)) for point in points):
        assert after == before


def test_units_multiply_and_order_does_not_matter():
    points, reference = [(1.0, 5.0, 2.0), (2.0, 3.0, 4.0), (4.0, 1.0, 1.0)], (5.0, 6.0, 5.0)
    whole = hypervolume(points, reference)
    assert hypervolume(points[::-1], reference) == whole
    scaled = hypervolume([(a / 2, b, c * 10) for a, b, c in points], (2.5, 6.0, 50.0))
    assert scaled == pytest.approx(whole * 10 / 2)


def test_what_is_not_better_than_the_reference_everywhere_adds_nothing():
    assert hypervolume([(0.0, 3.0), (3.0, 0.0), (3.0, 3.0)], (3.0, 3.0)) == 0
    assert hypervolume([], (1.0, 1.0)) == 0
    assert hypervolume([(math.inf, 0.0), (0.5, 0.5)], (1.0, 1.0)) == 0.25


def test_the_front_and_the_reference():
    points = [(1, 4), (2, 2), (2, 2), (3, 3), (4, 1)]
    assert front_of(points) == [(1, 4), (2, 2), (4, 1)]
    assert reference_of([*points, (math.inf, 0)]) == (4, 4)
    with pytest.raises(ValueError, match="no point has finite values"):
        reference_of([(math.inf, 0.0)])
    with pytest.raises(ValueError, match="points need 2 objectives"):
        hypervolume([(1.0, 2.0, 3.0)], (4.0, 4.0))


def test_the_history_keeps_what_was_found():
    found = history([[(2.0, 2.0)], [], [(3.0, 3.0)], [(1.0, 3.0)]], (4.0, 4.0))
    assert found == [4.0, 4.0, 4.0, 5.0]
