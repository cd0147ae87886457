"""Evolution on made-up scores: a known front, elites, barriers between generations, limits, and its ends."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_designs import LOSS, answered, attention_and_swiglu, flat, searched

from manticore.errors import ManticoreError
from manticore.search.designs.evolution import evolution, offspring
from manticore.search.designs.scores import Goal, Scores
from manticore.search.designs.space import Design
from manticore.search.designs.variation import crossover, mutate, ranked, winner

BOTH = (Goal("leading", maximise=True), Goal("trailing", maximise=True))


def leading_and_trailing(design: Design) -> dict[str, float]:
    """Leading ones and trailing zeros: the front is known, one design for each number of ones."""
    ones = next((n for n, value in enumerate(design) if value != 1), len(design))
    zeros = next((n for n, value in enumerate(reversed(design)) if value != 0), len(design))
    return {"leading": ones, "trailing": zeros}


def ones(design: Design) -> dict[str, float]:
    return {"loss": -sum(design) - design[0] / 2, "size": sum(design)}


@pytest.mark.parametrize("seed", [0, 5])
def test_it_recovers_a_known_front_which_draws_do_not(seed: int) -> None:
    space, front = attention_and_swiglu(8), {(1,) * k + (0,) * (8 - k) for k in range(9)}
    budget = {"seed": seed, "goals": BOTH, "trials": 160}
    scores, _ = searched("evolution", space, leading_and_trailing, generations=40, **budget)
    assert front <= set(scores.front())
    assert not front <= set(searched("random", space, leading_and_trailing, **budget)[0].front())


@pytest.mark.parametrize(("goals", "measure"), [(BOTH, leading_and_trailing), (LOSS, ones)])
def test_two_elites_survive_unscored(goals: tuple[Goal, ...], measure: object) -> None:
    scores, batches = searched("evolution", attention_and_swiglu(10), measure, 16 + 5 * 14, goals=goals, generations=5)
    assert [len(batch) for batch in batches] == [16] * 6
    seen: set[Design] = set()
    for before, batch in itertools.pairwise(batches):
        seen |= set(before)
        elites = ranked(seen, scores)[:2]
        # among equals the first two of those that survived, which may have left others behind
        assert [scores.values(each) for each in batch[:2]] == [scores.values(each) for each in elites]
        assert set(batch[:2]) <= seen
        assert not set(batch[2:]) & seen
        assert all(scores.notes[each]["elite"] for each in batch[:2])
    assert len(scores.found) == 16 + 5 * 14


def test_the_published_search_is_268_trainings() -> None:
    scores, batches = searched("evolution", attention_and_swiglu(12), ones, 1000)
    assert (len(batches), len(scores.found)) == (19, 16 + 18 * 14)


def test_a_third_of_few_trials_is_the_first_population() -> None:
    for trials, size in ((24, 8), (60, 16), (9, 4), (3, 3)):
        assert len(searched("evolution", attention_and_swiglu(9), ones, trials)[1][0]) == size


def test_who_scores_first_changes_nothing_and_later_scores_no_earlier_design() -> None:
    space = attention_and_swiglu(9)

    def run(order: int, forget: int = 99) -> list[list[Design]]:
        scores = Scores(space, BOTH)
        asking, batches = evolution(scores, 3, 60, population=8), []
        for batch in asking:
            batches.append(list(batch))
            for design in random.Random(order).sample(batch, len(batch)):
                measures = leading_and_trailing(design) if len(batches) <= forget else {"leading": 0, "trailing": 0}
                scores.found.setdefault(design, measures)
        return batches

    assert run(0) == run(1)
    assert run(0)[:4] == run(0, forget=3)[:4]
    assert run(0)[4:] != run(0, forget=3)[4:]


def test_another_seed_is_another_search() -> None:
    searches = [flat(searched("evolution", attention_and_swiglu(8), ones, 20, seed=seed)[1]) for seed in (0, 1)]
    assert searches[0] != searches[1]


def test_limits_go_before_goals() -> None:
    scores, batches = searched("evolution", attention_and_swiglu(10), ones, 90, limits={"size": 4}, generations=20)
    assert sum(scores.best() or ()) == 4
    # what exceeds the limit by less is kept
    assert sum(map(sum, batches[-1])) < sum(map(sum, batches[0]))


def test_designs_that_fail_or_diverge_are_left_behind() -> None:
    def measure(design: Design) -> dict[str, float] | None:
        if design[0]:
            return None
        return {"loss": math.nan if design[1] else float(sum(design))}

    scores, batches = searched("evolution", attention_and_swiglu(7), measure, 70, generations=20)
    assert scores.best() == (0,) * 7
    assert sum(design[0] + design[1] for design in batches[-1]) < sum(design[0] + design[1] for design in batches[0])


def test_it_stops_where_no_design_is_left() -> None:
    scores, batches = searched("evolution", attention_and_swiglu(4), ones, 16, population=4, generations=500)
    assert len(scores.found) == 16
    assert len(batches) < 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 17}, "17 trials, but the space has 16 designs"),
        ({"mutation": 3}, r"evolution: mutation is 3 .* Fix: for instance 0.1"),
        ({"population": "x"}, "evolution: population is 'x'"),
        ({"population": 2}, "evolution: 2 elites in a population of 2. Fix: elites=1"),
    ],
)
def test_more_than_there_is_is_refused_in_a_line(options: dict[str, int], said: str) -> None:
    with pytest.raises(ManticoreError, match=said):
        searched("evolution", attention_and_swiglu(4), ones, **{"trials": 8, **options})


def test_notes_tell_where_designs_come_from() -> None:
    space = attention_and_swiglu(10)
    scores, batches = searched("evolution", space, ones, 44, population=16, generations=2)
    for generation, batch in enumerate(batches):
        for design in batch[2 * bool(generation) :]:
            note = scores.notes[design]
            assert note["generation"] == generation
            parents = note["parents"]
            assert (parents is None) == (generation == 0)
            assert all(scores.notes[space.read(each)]["generation"] < generation for each in parents or ())
    counts = offspring(scores.notes.values())
    assert [row["made"] - row["duplicates"] for row in counts] == [0, 14, 14]
    assert [row["invalid"] for row in counts] == [0, 0, 0]


def test_an_incomplete_search_can_be_gone_on_with() -> None:
    scores, whole = searched("evolution", attention_and_swiglu(8), ones, 60, generations=5)
    again = Scores(scores.space, LOSS)
    kept = dict(list(scores.found.items())[:21])
    again.found.update(kept)
    assert answered(evolution(again, 0, 60, generations=5), again, ones) == whole


designs = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(
    designs.flatmap(
        lambda one: st.tuples(st.just(one), st.lists(st.integers(4, 7), min_size=len(one), max_size=len(one)))
    ),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_a_child_takes_turns_between_its_parents(pair: tuple[list[int], list[int]], points: int, seed: int) -> None:
    one, other = map(tuple, pair)
    child = crossover(one, other, points, random.Random(seed))
    assert all(value in pair for value, pair in zip(child, zip(one, other)))
    turns = sum((a < 4) != (b < 4) for a, b in itertools.pairwise(child))
    assert turns == min(points, len(one) - 1)
    assert child[0] == one[0]


def test_mutation_draws_another_legal_value_at_its_rate() -> None:
    values, draws = [range(4), (7,), range(2, 5)], random.Random(0)
    made = [mutate((0, 7, 3), values, 0.1, draws) for _ in range(4000)]
    assert all(value in legal for design in made for value, legal in zip(design, values))
    for position, rate in ((0, 0.1), (1, 0), (2, 0.1)):
        changed = sum(design[position] != (0, 7, 3)[position] for design in made) / len(made)
        assert changed == pytest.approx(rate, abs=0.02)


def test_a_tournament_of_three_picks_the_best_of_them() -> None:
    draws = random.Random(0)
    wins = [winner(range(16), 3, draws) for _ in range(4000)]
    # the best is among three of sixteen with 3/16, and then wins
    assert wins.count(0) / len(wins) == pytest.approx(3 / 16, abs=0.02)
    assert not {14, 15} & set(wins)
