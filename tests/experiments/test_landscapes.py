"""Landscapes: every path's curve is what a search would see, and what a search found has a place among them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_curves import made_up

from manticore.experiments.landscapes import Landscape, mean_truth, regret, replay
from manticore.search.baselines import exhaustive, random_paths
from manticore.search.curves import MARKS
from manticore.search.race import race

LOSSES = {(0, 0): 2.0, (0, 1): 1.8, (1, 0): 0.5, (1, 1): 1.0}


def landscape():
    """Candidates whose losses fall to the given ones over a unit, at a thousand FLOPs a mark."""
    return Landscape.of(made_up(LOSSES), unit=MARKS * 1000, metric="accuracy")


def test_a_landscape_is_read_back_as_it_was_written():
    found = landscape()
    again = Landscape.read(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert again.to_dict() == found.to_dict()


def test_a_replay_pays_for_what_the_method_has_asked_for():
    found = replay(landscape(), race, 0, list(range(1, MARKS + 1)), gap=0.2)
    assert found.choice.path == (1, 0)
    # all four train to the mark where it ended, and are scored at each on the way, at ten FLOPs
    spent = 4 * found.choice.mark * (1000 + 10)
    assert found.cost == pytest.approx(spent / (MARKS * 1000))
    assert replay(landscape(), exhaustive, 0, [MARKS]).cost == pytest.approx(4 * (MARKS * 1000 + 10) / (MARKS * 1000))


def test_random_paths_are_those_of_the_seed():
    drawn = [replay(landscape(), random_paths, seed, [MARKS], candidates=1).choice.path for seed in range(12)]
    assert drawn == [replay(landscape(), random_paths, seed, [MARKS], candidates=1).choice.path for seed in range(12)]
    assert len(set(drawn)) > 1


@given(scores=st.dictionaries(st.tuples(st.integers(0, 3)), st.floats(-10, 10), min_size=1, max_size=4))
def test_regret_goes_from_the_best_to_the_worst(scores):
    regrets = {path: regret(scores, path) for path in scores}
    assert min(regrets.values()) == 0
    assert all(0 <= value <= 1 for value in regrets.values())
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    assert regrets[best] == 0
    assert regrets[worst] == (1 if scores[best] != scores[worst] else 0)


def test_the_truth_of_several_seeds_is_their_mean():
    assert mean_truth([{(0,): 1.0, (1,): 0.0}, {(0,): 0.0, (1,): 0.5}]) == {(0,): 0.5, (1,): 0.25}
