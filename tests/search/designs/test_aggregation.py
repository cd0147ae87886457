"""N_c: the votes, ties, empty sets, and who is in the best cluster."""

from __future__ import annotations

import math
import random
import sys

import pytest
from made_up_designs import attention_and_swiglu

from manticore.errors import ManticoreError
from manticore.search.designs.aggregation import aggregate, best_cluster
from manticore.search.designs.scores import Goal, Scores

SPACE = attention_and_swiglu(6)
PUBLISHED = ("AAMMMM", "AMMMAM", "AAMAMM")


def aggregated(accuracies: dict[str, float], context: int | None) -> str:
    return SPACE.spelled(aggregate({SPACE.read(text): value for text, value in accuracies.items()}, context))


def test_the_published_example() -> None:
    equal = dict.fromkeys(PUBLISHED, 0.5)
    assert aggregated(equal, 0) == "AAMMMM"
    # N_1 sees M and A after the M at position 4: the more accurate design decides
    assert aggregated({**equal, "AMMMAM": 0.6}, 1) == "AAMMAM"
    assert aggregated({**equal, "AAMMMM": 0.6}, 1) == "AAMMMM"
    # the whole prefix AAM leaves the first and the third, which differ at position 4
    assert aggregated({**equal, "AAMMMM": 0.6}, None) == "AAMMMM"
    assert aggregated({**equal, "AAMAMM": 0.6}, None) == "AAMAMM"


def test_ties_go_to_the_larger_sum_then_to_the_better_design() -> None:
    votes = {"AMMMMM": 0.3, "MMMMMM": 0.2, "AAMMMM": 0.1, "MAMMMM": 0.3}
    assert aggregated(votes, 0)[0] == "M"
    assert aggregated({"AMMMMM": 0.4, "MMMMMM": 0.25, "AAMMMM": 0.1, "MAMMMM": 0.25}, 0)[0] == "A"


def test_an_empty_set_backs_off_one_position_at_a_time() -> None:
    votes = {(0, 0, 0, 5): 1.0, (1, 0, 1, 6): 0.2, (2, 1, 1, 7): 0.3, (2, 0, 1, 7): 0.3}
    # above 3 1 1: nobody has 3 1 1, one has 1 1 before the last position
    assert aggregate(votes, None, begin=(3, 1, 1)) == (3, 1, 1, 7)
    assert aggregate(votes, 3, begin=(3, 1, 1)) == (3, 1, 1, 7)
    # above 3 3 0: only the position before is anybody's; above 3 3 3 not even that, so all vote
    assert aggregate(votes, None, begin=(3, 3, 0)) == (3, 3, 0, 5)
    assert aggregate(votes, 2, begin=(3, 3, 3)) == (3, 3, 3, 7)


def test_what_votes_choose_some_design_has() -> None:
    draws = random.Random(0)
    for _ in range(50):
        votes = {tuple(draws.choices(range(3), k=5)): draws.random() for _ in range(6)}
        for context in (1, 2, None):
            chosen = aggregate(votes, context)
            seen = 4 if context is None else context
            for position in range(5):
                among = slice(max(0, position - seen), position + 1)
                assert any(design[among] == chosen[among] for design in votes)


def test_the_best_cluster_is_the_one_with_the_best_scores() -> None:
    scores = Scores(SPACE, (Goal("loss"),))
    losses = {"AAMMMM": 1.0, "AMMMAM": 1.02, "AAMAMM": 1.01, "MMMMMM": 2.0, "AAAAAA": 3.0, "MAMAMA": 4.0, "AMAMAM": 5.0}
    scores.found = {SPACE.read(text): {"loss": loss} for text, loss in losses.items()}
    best = best_cluster(scores)
    assert {SPACE.spelled(design) for design in best} == set(PUBLISHED)
    assert best[SPACE.read("AAMMMM")] == pytest.approx(math.exp(-1.0))
    scores.goals = (Goal("loss", maximise=True),)
    assert [SPACE.spelled(design) for design in best_cluster(scores)] == ["AMAMAM"]


def test_fewer_scores_than_clusters_and_limits() -> None:
    scores = Scores(SPACE, (Goal("loss"),), {"size": 3})
    scores.found = {
        SPACE.read("AAMMMM"): {"loss": 1.0, "size": 4},
        SPACE.read("AAAMMM"): {"loss": 2.0, "size": 3},
        SPACE.read("AAAAMM"): {"loss": 2.0, "size": 2},
    }
    assert {SPACE.spelled(design) for design in best_cluster(scores)} == {"AAAMMM", "AAAAMM"}
    scores.found.clear()
    with pytest.raises(ManticoreError, match="no design has scores and keeps the limits"):
        best_cluster(scores)


def test_what_cannot_be_aggregated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for accuracies, context, said in [
        ({}, 0, "no designs"),
        ({(0, 1): 1.0, (0,): 1.0}, 0, "designs of 1 and 2 positions"),
        ({(0, 1): 1.0}, -1, r"context is -1 \(expected 0 or more, or None\)"),
    ]:
        with pytest.raises(ManticoreError, match=said):
            aggregate(accuracies, context)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ManticoreError, match=r"scikit-learn cannot be imported .*\[design\]"):
        best_cluster(Scores(SPACE, (Goal("loss"),)))
