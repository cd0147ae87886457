"""Gaussian process and TPE as methods: distinct designs, batches, seeds, several goals, limits, failures."""

from __future__ import annotations

import sys

import pytest
from made_up_designs import answered, attention_and_swiglu, flat, searched

from manticore.errors import ManticoreError
from manticore.registry import resolve
from manticore.search.designs.layer_lists import LayerListSpace
from manticore.search.designs.samplers import asked_of
from manticore.search.designs.scores import Goal, Scores
from manticore.search.designs.space import Design

SPACE = attention_and_swiglu(4)


def late_swiglu(design: Design) -> dict[str, float]:
    """A loss that is least for attention below and swiglu above."""
    return {"loss": sum((index - 1.5) * (0.5 - value) for index, value in enumerate(design)), "size": sum(design)}


@pytest.mark.parametrize(("method", "options"), [("gp", {"first": 4}), ("tpe", {"first": 4})])
def test_they_ask_for_new_designs_only_and_find_the_best(method: str, options: dict[str, int]) -> None:
    scores, batches = searched(method, SPACE, late_swiglu, 9, **options)
    asked = flat(batches)
    assert len(asked) == len(set(asked)) == 9
    assert [len(batch) for batch in batches] == [1] * 9
    assert SPACE.spelled(scores.best() or ()) == "AAMM"
    assert flat(searched(method, SPACE, late_swiglu, 9, **options)[1]) == asked
    assert flat(searched(method, SPACE, late_swiglu, 9, seed=1, **options)[1]) != asked


@pytest.mark.parametrize("method", ["gp", "tpe"])
def test_batches_are_of_distinct_designs_and_the_last_is_what_is_left(method: str) -> None:
    batches = searched(method, SPACE, late_swiglu, 8, batch=3, first=3)[1]
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert len(set(flat(batches))) == 8


@pytest.mark.parametrize("method", ["gp", "tpe"])
def test_a_whole_space_is_asked_for_and_no_more(method: str) -> None:
    space = attention_and_swiglu(3)
    batches = searched(method, space, late_swiglu, 8, first=5)[1]
    assert set(flat(batches)) == set(space.designs())
    with pytest.raises(ManticoreError, match=r"9 trials, but the space has 8 designs. Fix: trials=8"):
        searched(method, space, late_swiglu, 9)


def test_what_was_scored_before_is_asked_for_again_in_the_same_order() -> None:
    """A study that goes on finds the scores that it had: the method comes to the same designs."""
    scores, batches = searched("tpe", SPACE, late_swiglu, 8, first=3)
    again = Scores(SPACE, scores.goals, found=dict(scores.found))
    trained: list[Design] = []

    def train(design: Design) -> dict[str, float]:
        trained.append(design)
        return late_swiglu(design)

    assert answered(resolve("design", "tpe")(again, 0, 10, first=3), again, train)[:8] == batches
    assert len(trained) == 2


@pytest.mark.parametrize("method", ["gp", "tpe"])
def test_several_goals_and_limits(method: str) -> None:
    goals = (Goal("loss"), Goal("size"))
    scores, batches = searched(method, SPACE, late_swiglu, 7, goals=goals, limits={"size": 2}, first=4)
    assert len(set(flat(batches))) == 7
    assert all(sum(design) <= 2 for design in scores.front())


@pytest.mark.parametrize("method", ["gp", "tpe"])
def test_failed_designs_stop_nothing_and_are_not_asked_for_again(method: str) -> None:
    scores, batches = searched(method, SPACE, lambda d: None if d[0] else late_swiglu(d), 9, first=4)
    assert len(set(flat(batches))) == 9
    assert scores.failed
    assert all(design[0] for design in scores.failed)


def test_positions_beyond_ten_and_positions_without_a_choice_stay_in_place() -> None:
    """optuna sorts parameters by name and leaves those of one value out; the exact search must not mix them up."""

    class Settled(LayerListSpace):
        @property
        def values(self):
            return [[0], *super().values[1:5], [1], *super().values[6:]]

        def repaired(self, design, draws):
            return (0, *super().repaired(design, draws)[1:5], 1, *super().repaired(design, draws)[6:])

    space = Settled(primitives=["attention", "swiglu"], layers=12, width=16)
    _, batches = searched("gp", space, lambda d: {"loss": -float(sum(d[1:5]) - sum(d[6:]))}, 9, first=5)
    for design in flat(batches):
        assert design[0] == 0
        assert design[5] == 1
    assert len(set(flat(batches))) == 9


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_that_repeats_itself_is_taken_to_a_neighbour() -> None:
    from optuna.samplers import BruteForceSampler, PartialFixedSampler

    positions = {f"{index:05}": 0 for index in range(4)}
    stubborn = PartialFixedSampler(positions, BruteForceSampler(seed=0))
    scores = Scores(SPACE, (Goal("loss"),))
    asked = flat(answered(asked_of(stubborn, scores, 0, 5, 1), scores, late_swiglu))
    assert asked[0] == (0, 0, 0, 0)
    assert len(set(asked)) == 5
    assert all(sum(design) == 1 for design in asked[1:])


def test_qlognei_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botorch", None)
    with pytest.raises(ManticoreError, match=r"qlognei: BoTorch cannot be imported .*Fix: pip install .*\[botorch\]"):
        searched("qlognei", SPACE, late_swiglu, 4)


def test_qlognei_finds_the_best_of_distinct_designs() -> None:
    pytest.importorskip("botorch", reason="BoTorch is optional")
    scores, batches = searched("qlognei", SPACE, late_swiglu, 9, first=4, batch=2)
    asked = flat(batches)
    assert len(asked) == len(set(asked)) == 9
    assert SPACE.spelled(scores.best() or ()) == "AAMM"
    assert flat(searched("qlognei", SPACE, late_swiglu, 9, first=4, batch=2)[1]) == asked
    with pytest.raises(ManticoreError, match=r"qlognei: 2 goals \(expected one goal without limits\)"):
        searched("qlognei", SPACE, late_swiglu, 9, goals=(Goal("loss"), Goal("size")))
