"""Incremental search: what rounds keep, where they put new layers, how trials are shared out."""

from __future__ import annotations

import pytest
from made_up_designs import attention_and_swiglu, flat, searched

from manticore.errors import ManticoreError
from manticore.search.designs.space import Design

SPACE = attention_and_swiglu(6, grown_by=2)


def swiglus_in_pairs(design: Design) -> dict[str, float]:
    """Best: attention, then swiglu."""
    return {"loss": float(design[0] + (1 - design[-1])) + 0.01 * sum(design[1:-1])}


def test_at_the_end_the_best_list_of_a_round_is_kept_below() -> None:
    scores, batches = searched("end-incremental", SPACE, swiglus_in_pairs, 12, sampler="exhaustive")
    rounds = [[SPACE.spelled(design) for design in batch] for batch in batches]
    assert rounds == [
        ["AA", "AM", "MA", "MM"],
        ["AMAA", "AMAM", "AMMA", "AMMM"],
        # AMAM was the best of the second round
        ["AMAMAA", "AMAMAM", "AMAMMA", "AMAMMM"],
    ]
    assert SPACE.spelled(scores.best() or ()) == "AMAMAM"


def test_in_the_middle_both_ends_are_kept() -> None:
    _, batches = searched("middle-incremental", SPACE, swiglus_in_pairs, 12, sampler="exhaustive")
    assert [SPACE.spelled(design) for design in batches[1]] == ["AAAM", "AAMM", "AMAM", "AMMM"]
    assert [SPACE.spelled(design) for design in batches[2]] == ["AAAAAM", "AAAMAM", "AAMAAM", "AAMMAM"]


def test_trials_are_shared_out_and_never_more_than_asked_for() -> None:
    _, batches = searched("end-incremental", SPACE, swiglus_in_pairs, 8, sampler="random")
    assert [len(batch) for batch in batches] == [2, 3, 3]
    # a round of four designs leaves the rest to the next ones, and they have no more either
    assert len(set(flat(searched("end-incremental", SPACE, swiglus_in_pairs, 40, sampler="random")[1]))) == 12


def test_the_seed_decides() -> None:
    space = attention_and_swiglu(9, grown_by=3)
    asked = [
        flat(searched("middle-incremental", space, swiglus_in_pairs, 12, sampler="tpe", seed=s)[1]) for s in (0, 0, 1)
    ]
    assert asked[0] == asked[1] != asked[2]


def test_a_round_of_failures_ends_the_search() -> None:
    scores, batches = searched("end-incremental", SPACE, lambda design: None, 12, sampler="exhaustive")
    assert len(batches) == 1
    assert scores.best() is None


@pytest.mark.parametrize(
    ("space", "trials", "options", "said"),
    [
        (attention_and_swiglu(6), 12, {}, "the space does not grow .* Fix: give the layers of a round"),
        (SPACE, 2, {}, r"2 trials for 3 rounds \(expected one for each at least\)"),
        (SPACE, 12, {"sampler": "middle-incremental"}, "which has rounds itself"),
        (SPACE, 12, {"sampler": "gpp"}, "unknown design method 'gpp'"),
    ],
)
def test_what_cannot_be_searched_is_refused(space, trials, options, said) -> None:
    with pytest.raises(ManticoreError, match=said):
        searched("end-incremental", space, swiglus_in_pairs, trials, **options)
