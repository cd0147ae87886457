"""What searches over candidates decide, on curves that are given."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from made_up_curves import decide, made_up

from manticore.errors import ManticoreError
from manticore.search.auto import auto
from manticore.search.baselines import exhaustive, halving, random_paths
from manticore.search.blockwise import blockwise, groups
from manticore.search.curves import MARKS
from manticore.search.forecast import forecast
from manticore.search.race import LATE, race
from manticore.search.space import MOST_PATHS, Space, handovers

FOUR = {(0, 0): 2.0, (0, 1): 1.8, (1, 0): 0.5, (1, 1): 1.0}
DENSE = list(range(1, 13))


def of_blocks(blocks, score):
    """Losses of all paths of two components."""
    return {path: score(path) for path in itertools.product(range(2), repeat=blocks)}


def test_a_race_ends_when_the_leader_is_far_enough_ahead():
    asked, choice = decide(race, made_up(FOUR), gap=0.2)
    # .5 nats apart after a unit: a gap of .2 at mark 5
    assert (choice.path, choice.mark) == ((1, 0), 5)
    assert [{mark for _, mark in request} for request in asked] == [{1}, {2}, {3}, {4}, {5}]
    assert all({path for path, _ in request} == set(FOUR) for request in asked)
    assert "ahead" in choice.reason


def test_who_is_far_behind_late_in_a_race_goes_no_further():
    asked, choice = decide(race, made_up({**FOUR, (1, 1): 0.55}), gap=0.2)
    assert choice.path == (1, 0)
    assert [{path for path, _ in request} for request in asked] == [set(FOUR)] * LATE + [{(1, 0), (1, 1)}] * 4


def test_who_is_behind_within_noise_stays_in_a_race():
    curves = made_up({**FOUR, (1, 1): 0.9})
    for path, curve in curves.points.items():
        for mark, point in curve.items():
            # examples that go either way by two nats, otherwise for every path
            losses = tuple(point.loss + 2 * (-1) ** (n // (1 + path[0] + 2 * path[1])) for n in range(8))
            curve[mark] = replace(point, losses=losses)
    asked, choice = decide(race, curves, gap=0.2)
    assert (choice.path, choice.mark) == ((1, 0), MARKS)
    assert all({path for path, _ in request} == set(FOUR) for request in asked)


def test_a_race_of_equals_goes_to_its_end_and_the_parent_has_it():
    _, choice = decide(race, made_up({**FOUR, (1, 1): 0.5}))
    assert (choice.path, choice.mark) == ((1, 1), MARKS)
    assert choice.reason.startswith("the race ended after 12/12 of a unit undecided: a lead of 0.00 nats")
    _, choice = decide(race, made_up({**FOUR, (1, 1): 0.58}))
    assert choice.reason == "the race ended after 12/12 of a unit with a lead of 0.08 nats"


def test_a_parent_that_may_not_be_chosen_ends_no_race_between_the_others():
    curves = made_up({(0, 0): 0.1, (0, 1): 0.98, (1, 0): 0.9, (1, 1): 2.0})
    curves.space = Space(2, 2, frozenset({(0, 1), (1, 0)}))
    _, choice = decide(race, curves)
    assert (choice.path, choice.mark) == ((1, 0), MARKS)


def test_where_all_others_failed_the_race_says_so():
    curves = made_up(FOUR)
    for path in ((0, 0), (0, 1), (1, 1)):
        del curves.points[path]
    assert decide(race, curves)[1].reason == "all others had failed after 1/12 of a unit"


def test_a_candidate_that_fails_cannot_win_and_does_not_stop_the_others():
    curves = made_up(FOUR)
    del curves.points[1, 0]
    curves.failed[1, 0] = "diverged"
    _, choice = decide(race, curves)
    assert choice.path == (1, 1)


def test_the_metric_decides_and_not_the_loss_where_they_differ():
    curves = made_up(FOUR)
    for mark, point in list(curves.points[0, 1].items()):
        curves.points[0, 1][mark] = type(point)(**{**point.to_dict(), "metric": 0.99, "losses": point.losses})
    assert decide(race, curves)[1].path == (0, 1)


def test_metrics_where_lower_is_better():
    assert decide(exhaustive, made_up(FOUR, higher_is_better=False))[1].path == (1, 0)


@pytest.mark.parametrize("best", list(itertools.product(range(2), repeat=4)))
def test_blockwise_finds_the_best_path_where_blocks_add_up(best):
    weights = (0.4, 0.3, 0.2, 0.1)
    losses = of_blocks(4, lambda path: 2 - sum(w for w, a, b in zip(weights, path, best) if a == b))
    asked, choice = decide(blockwise, made_up(losses))
    assert choice.path == best
    tried = {path for request in asked for path, _ in request}
    assert {(0, 0, 0, 0), (1, 1, 1, 1)} <= tried
    assert len(tried) <= 6


def test_blockwise_keeps_to_the_number_of_handovers():
    losses = of_blocks(4, lambda path: 2 - 0.1 * handovers(path))
    asked, choice = decide(blockwise, made_up(losses), max_handovers=1)
    assert all(handovers(path) <= 1 for request in asked for path, _ in request)
    assert handovers(choice.path) == 1


def test_many_blocks_are_flipped_coarse_to_fine():
    assert list(groups(4)) == [(0,), (1,), (2,), (3,)]
    assert list(groups(8))[:3] == [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1)]
    assert {len(group) for group in groups(12)} == {6, 3, 1}
    assert sorted({block for group in groups(12) for block in group}) == list(range(12))


def test_three_components():
    losses = {path: 3 - path.count(2) - 0.1 * path[0] for path in itertools.product(range(3), repeat=2)}
    assert decide(auto, made_up(losses))[1].path == (2, 2)
    asked, _ = decide(blockwise, made_up(losses))
    assert asked[0] == [((0, 0), 6), ((1, 1), 6), ((2, 2), 6)]


def test_auto_races_four_paths_and_goes_block_by_block_over_more():
    assert decide(auto, made_up(FOUR)) == decide(race, made_up(FOUR))
    sixteen = of_blocks(4, lambda path: 2 - 0.3 * path[0])
    assert decide(auto, made_up(sixteen)) == decide(blockwise, made_up(sixteen))


def test_only_allowed_paths_are_chosen_and_parents_are_looked_at():
    for method in (race, blockwise, exhaustive, random_paths, halving):
        curves = made_up(FOUR)
        curves.space = Space(2, 2, frozenset({(0, 1), (0, 0)}))
        assert decide(method, curves)[1].path in {(0, 1), (0, 0)}
    curves = made_up(FOUR)
    curves.space = Space(2, 2, frozenset({(0, 1)}))
    asked, choice = decide(race, curves)
    assert choice.path == (0, 1)
    assert {path for path, _ in asked[0]} == {(0, 0), (0, 1), (1, 1)}


def test_random_draws_from_the_seed_without_putting_back():
    drawn = [decide(random_paths, made_up(FOUR), seed, candidates=3)[0][0] for seed in range(6)]
    assert all(len({path for path, _ in request}) == 3 for request in drawn)
    assert len({tuple(request) for request in drawn}) > 1
    assert len(decide(random_paths, made_up(FOUR), candidates=99)[0][0]) == 4


def test_halving_drops_half_at_every_rung():
    asked, choice = decide(halving, made_up(of_blocks(4, lambda path: 2 - 0.1 * sum(path))))
    assert [len(request) for request in asked] == [16, 8, 4]
    assert choice.path == (1, 1, 1, 1)


def test_too_many_paths_to_list_are_refused():
    with pytest.raises(
        ManticoreError, match=r"2 components in 24 blocks have 1\.68e\+07 paths .* Fix: method='blockwise'"
    ):
        decide(exhaustive, _with_space(Space(24, 2)))
    assert MOST_PATHS > 2**19


def _with_space(space):
    curves = made_up(FOUR)
    curves.space = space
    return curves


@pytest.mark.parametrize("method", [race, blockwise, auto, halving, exhaustive, random_paths])
@pytest.mark.parametrize("blocks", [2, 4])
def test_a_forecast_holds_what_the_method_really_takes(method, blocks):
    least, most = forecast(method, Space(blocks, 2), DENSE, 0)
    losses = of_blocks(blocks, lambda path: 2 - 0.2 * math.sqrt(1 + sum(path)))
    asked, _ = decide(method, made_up(losses))
    furthest = {}
    for request in asked:
        for path, mark in request:
            furthest[path] = max(mark, furthest.get(path, 0))
    assert least.units <= sum(furthest.values()) / 12 <= most.units
