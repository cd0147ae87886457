"""Searches with a component that was made beside a parent: what stays in it is a path like any other, and no parent."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_curves import decide, made_up

from manticore.registry import entries, resolve
from manticore.report.candidates import is_parent
from manticore.report.naming import alone, path_words
from manticore.report.results import parse_results
from manticore.schema.options import trains_candidates
from manticore.search.curves import MARKS, Curves, SharedScores
from manticore.search.forecast import forecast
from manticore.search.space import Space

FRESH = Space(2, 2, fresh=frozenset({1}))
METHODS = [name for name in entries("search") if trains_candidates(name)]


@pytest.mark.parametrize("name", METHODS)
def test_every_search_over_candidates_knows_one_parent(name: str) -> None:
    for course in forecast(resolve("search", name), FRESH, list(range(1, MARKS + 1)), seed=0):
        paths = set(course.marks)
        assert paths
        if name in ("blockwise", "oneshot"):
            assert (0, 0) in paths


def test_blockwise_begins_with_the_one_parent() -> None:
    first = next(resolve("search", "blockwise")(Curves(FRESH, True, list(range(1, MARKS + 1))), 0))
    assert [path for path, _ in first] == [(0, 0)]


def test_a_tie_goes_to_a_parent_and_not_to_what_stays_in_the_branch() -> None:
    for fresh, found in ((frozenset(), (1, 1)), (frozenset({1}), (0, 1))):
        curves = made_up({(0, 0): 2.5, (0, 1): 1.0, (1, 0): 2.0, (1, 1): 1.0})
        curves.space = Space(2, 2, fresh=fresh)
        assert curves.space.paths()[0] == (0, 0)
        assert curves.best([(0, 1), (1, 0), (1, 1)], MARKS) == found


def test_a_single_finalist_trains_to_the_end() -> None:
    curves = made_up({(0, 0): 1.0, (0, 1): 2.0, (1, 0): 2.0, (1, 1): 2.0})
    curves.space = FRESH
    method = resolve("search", "oneshot")
    scored = {path: points[MARKS] for path, points in curves.points.items()}
    curves.shared = SharedScores(scored, 0)
    asked, choice = decide(method, curves, top=1)
    assert asked[-1] == [((0, 0), MARKS)]
    assert choice.path == (0, 0)


def test_reports_call_what_stays_in_the_branch_no_parent() -> None:
    candidates = [{"path": path, "points": [{"mark": 12, "loss": 1.0, "metric": 0.5}]} for path in ([0, 0], [1, 1])]
    record: dict[str, Any] = {
        "schema_version": 1,
        "components": [{"name": "parent"}, {"name": "branch"}],
        "combine": {"num_blocks": 2, "feature_spaces": [0, 0], "fresh": [1]},
        "search": {"method": "race", "candidates": candidates},
        "discretize": {"path": [1, 1]},
    }
    results = parse_results(record)
    assert results.search is not None
    assert [is_parent(results, each) for each in results.search.candidates] == [True, False]
    assert alone(results) is None
    assert path_words(results, results.path) == "branch"
    record["discretize"] = {"path": [0, 0]}
    assert alone(parse_results(record)) == "parent"
