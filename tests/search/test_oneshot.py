"""One-shot search: which paths it draws, which it scores, which it trains for real."""

import itertools
import math
from collections import Counter

import pytest
from tiny_search import make_hybrid, recall

import manticore
from manticore.errors import ManticoreError
from manticore.search.beam import MOST_SCORED, beam, compared_examples, drawn_paths
from manticore.search.choice import Shared
from manticore.search.curves import Curves, Point, SharedScores
from manticore.search.forecast import forecast
from manticore.search.oneshot import oneshot
from manticore.search.path_costs import PathCosts
from manticore.search.sampling import SAMPLINGS, Sampler
from manticore.search.space import Space

WEIGHTS = [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]


@pytest.mark.parametrize("allowed", [None, frozenset({(0, 0, 1), (0, 1, 1), (1, 1, 1)})])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_paths_are_drawn_as_often_as_their_chance_says(sampling, allowed):
    space = Space(3, 2, allowed)
    sampler = Sampler(space, sampling, 0, WEIGHTS)
    draws = 3000
    seen = Counter(sampler.path(step) for step in range(draws))
    whole = sum(map(sampler.chance, space.paths()))
    assert whole == pytest.approx(1) if allowed is None else whole < 1
    assert seen.keys() <= set(space.paths())
    for path in space.paths():
        chance = sampler.chance(path) / whole
        assert abs(seen[path] / draws - chance) < 4 * math.sqrt(chance * (1 - chance) / draws), path


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draw_depends_on_seed_and_step_alone(sampling):
    def paths(seed, steps):
        sampler = Sampler(Space(6, 3), sampling, seed, [[0.2, 0.3, 0.5]] * 6)
        return [sampler.path(step) for step in steps]

    in_turn = paths(5, range(20))
    assert paths(5, range(19, -1, -1)) == in_turn[::-1]
    assert paths(6, range(20)) != in_turn


def test_layouts_draw_parents_as_often_as_any_division_of_the_blocks():
    sampler = Sampler(Space(12, 2), "layouts", 0, [])
    pure = sum(len(set(sampler.path(step))) == 1 for step in range(2000))
    assert 2 / 13 * 0.8 < pure / 2000 < 2 / 13 * 1.2
    assert sum(len(set(Sampler(Space(12, 2), "uniform", 0, []).path(step))) == 1 for step in range(2000)) < 10


def test_weights_that_leave_nothing_are_refused():
    with pytest.raises(ManticoreError, match="Fix: sampling='uniform'"):
        Sampler(Space(2, 2, frozenset({(1, 1)})), "weighted", 0, [[1.0, 0.0]] * 2).path(0)


def cost(path):
    """Not additive over blocks alone: hand-overs, head and embeddings count too."""
    return sum(
        [100 * (path[0] + 1), 1000 * (path[-1] + 2), *((n + 2) * (k + 1) for n, k in enumerate(path))]
        + [7 * n + a + 3 * b for n, (a, b) in enumerate(itertools.pairwise(path)) if a != b]
    )


def test_costs_that_add_up_are_worked_out_from_few():
    asked = []
    costs = PathCosts(lambda path: asked.append(path) or cost(path), additive=True)
    space = Space(6, 3)
    assert all(costs(path) == cost(path) for path in space.paths())
    assert len(asked) == 3 + 3 * 2 * 5


def scored(loss):
    return Point(0, 0, 0, 0, float(loss), 0.0)


def far(path, best):
    """A score that gets better with every block that is right, the later ones more."""
    return scored(sum((n + 1) * (a != b) for n, (a, b) in enumerate(zip(path, best))))


def best_of(found):
    return min(found, key=lambda path: found[path].loss)


def test_a_space_that_can_be_listed_is_scored_whole():
    space = Space(8, 2)
    assert list(beam(space, lambda path: far(path, (0, 1) * 4))) == space.paths()
    few = frozenset({(0,) * 11 + (1,), (0, 1) * 6})
    assert set(beam(Space(12, 2, few), lambda path: scored(0))) == few


@pytest.mark.parametrize(("blocks", "components"), [(12, 2), (9, 3), (40, 2)])
def test_a_beam_finds_the_best_where_blocks_add_up(blocks, components):
    space, best = Space(blocks, components), tuple(n * n % components for n in range(blocks))
    found = beam(space, lambda path: far(path, best))
    assert len(found) == MOST_SCORED < space.size
    assert best_of(found) == best


@pytest.mark.parametrize("dear", [0, 1])
def test_a_beam_spends_what_drawn_paths_cost_wherever_it_goes(dear):
    space = Space(12, 2)

    def price(path):
        return 1.0 + 2 * path.count(dear)

    found = beam(space, lambda path: far(path, (1,) * 12), price, seed=3)
    spent, planned = (sum(map(price, paths)) for paths in (found, drawn_paths(space, 3)))
    assert planned - 25 < spent <= planned
    # paths that are dearer than usual are fewer
    assert (len(found) < MOST_SCORED) == (dear == 1)


def test_a_beam_goes_on_past_paths_without_a_score():
    best = (0, 1) * 6
    found = beam(Space(12, 2), lambda path: None if path[0] == 1 else far(path, best))
    assert best_of(found) == best


def of_sums(*sums):
    return frozenset(path for path in Space(12, 2).paths() if sum(path) in sums)


def test_a_beam_reaches_the_best_that_may_be_chosen():
    space, best = Space(12, 2, of_sums(5, 6, 7)), (0, 1) * 6
    found = beam(space, lambda path: far(path, best))
    assert best_of(found) == best
    assert len(found) == MOST_SCORED
    assert all(space.may_choose(path) for path in found.keys() - set(space.parents))


def test_where_no_flip_is_allowed_a_beam_scores_a_sample_and_the_parents():
    # another component in one block makes the sum another
    space = Space(12, 2, of_sums(6))
    found = beam(space, lambda path: far(path, (0, 1) * 6))
    assert set(space.parents) < found.keys()
    assert 10 <= sum(map(space.may_choose, found)) < 20


def point(mark, loss, metric=0.5):
    return Point(mark, mark, mark * 100, 1, loss, metric, (loss, loss))


def played(curves, shared, losses, **options):
    """Runs the generator; the requests, and the choice."""
    search, asked = oneshot(curves, 0, **options), []
    try:
        while True:
            request = next(search)
            asked.append(request)
            if isinstance(request, Shared):
                curves.shared = shared
                continue
            for path, mark in request:
                curves.add(path, point(mark, losses[path], 1 / losses[path]))
    except StopIteration as end:
        return asked, end.value


def test_the_best_few_by_shared_weights_race_the_parents():
    space = Space(3, 2)
    curves = Curves(space, True, [2, 4, 6, 8, 12])
    order = [(1, 0, 0), (0, 0, 0), (0, 1, 0), (1, 1, 0)]
    shared = SharedScores(
        {path: point(0, 1.0 + order.index(path) if path in order else 9.0) for path in space.paths()}, 50
    )
    losses = dict.fromkeys(space.paths(), 1.0) | {(0, 1, 0): 0.9}

    asked, choice = played(curves, shared, losses, top=3)

    assert asked[0] == Shared(space, 1.0, "uniform")
    # a parent among the best is not trained twice
    assert asked[1] == [(path, 2) for path in [(1, 0, 0), (0, 0, 0), (0, 1, 0), (1, 1, 1)]]
    assert [request[0][1] for request in asked[1:]] == [2, 4, 6, 8, 12]
    assert choice.path == (0, 1, 0)
    assert "number 3 of 8" in choice.reason
    assert curves.flops == 50 + 4 * 1200 + 8 * 1 + 4 * 5 * 1


def test_without_shared_scores_the_parents_race_alone():
    curves = Curves(Space(2, 3), True, [4, 8])
    asked, choice = played(curves, SharedScores({}, 70, 3, "diverged: loss"), {(k, k): 1.0 + k for k in range(3)})
    assert asked[0].units == 1.5
    assert {path for path, _ in asked[1]} == {(0, 0), (1, 1), (2, 2)}
    assert choice.path == (0, 0)
    assert "diverged" in choice.reason


def test_without_shared_scores_and_parents_that_may_be_chosen_others_race():
    space = Space(2, 2, frozenset({(0, 1), (1, 0)}))
    curves = Curves(space, True, [4, 8])
    asked, choice = played(curves, SharedScores({}, 70, 3, "out of memory"), dict.fromkeys(Space(2, 2).paths(), 1.0))
    # the nearest to the parents that may be
    assert {path for path, _ in asked[1]} == {(0, 0), (0, 1), (1, 1)}
    assert choice.path == (0, 1)


def test_a_forecast_knows_what_shared_weights_cost_and_who_may_race():
    marks = [4, 8, 12]
    least, most = forecast(oneshot, Space(3, 2), marks, 0, top=2)
    assert (least.candidates, most.candidates) == (2, 4)
    assert least.shared == most.shared == Shared(Space(3, 2), 1.0, "uniform")
    # far apart, a race ends at its first mark
    assert least.units == pytest.approx(1 + 2 * 4 / 12)
    assert most.units == pytest.approx(1 + 4 * 12 / 12)
    assert set(most.compared) == set(Space(3, 2).paths())
    assert len(forecast(oneshot, Space(12, 2), marks, 0)[-1].compared) == MOST_SCORED


@pytest.mark.parametrize(("training", "paths", "expected"), [(1e6, 100, 100), (1e6, 10, 256), (1e3, 256, 32)])
def test_scoring_costs_at_most_what_the_training_has(training, paths, expected):
    assert compared_examples(256, training, paths, 100.0) == expected
    assert compared_examples(8, training, paths, 100.0) == 8


def test_an_unknown_sampling_is_refused():
    with pytest.raises(ManticoreError, match="unknown sampling"):
        next(oneshot(Curves(Space(2, 2), True, [12]), 0, sampling="unifrom"))


def test_a_search_says_what_everything_has_cost(tmp_path):
    options = {
        "method": "oneshot",
        "finetune_flops": 9e7,
        "top": 1,
        "batch_size": 16,
        "validation_examples": 8,
        "cpu": True,
        "out": tmp_path,
    }
    result = manticore.search(make_hybrid(), recall(), **options)
    raced, scored = (sum(each.flops for each in listed) for listed in (result.candidates, result.shared))
    assert 0.9 * result.unit_flops < result.flops - raced - scored <= result.unit_flops
    assert [each.path for each in result.shared] == [[0, 0], [1, 1], [0, 1], [1, 0]]
    assert 2 <= len(result.candidates) <= 3
    assert result.steps > sum(each.points[-1].steps for each in result.candidates)
    again = manticore.search(make_hybrid(), recall(), **options, resume=True)
    assert again.to_dict() == result.to_dict()
