"""The paths that keep limits, and the best of them."""

import random

import pytest

from manticore.errors import ManticoreError
from manticore.option_types import Workload
from manticore.search.blockwise import blockwise
from manticore.search.constraints import allowed_paths, best_by_table, constrained, nearest
from manticore.search.costs import Cost, CostTable
from manticore.search.curves import Curves, Point
from manticore.search.race import race
from manticore.search.space import Space

AT = Workload(16, 1)


def random_cost(draw, blocks, components):
    """Whole numbers, so that costs of different paths may agree; a hand-over to oneself costs nothing."""
    each, number = range(components), lambda: float(draw.randrange(6))
    return Cost(
        blocks=tuple(tuple(number() for _ in each) for _ in range(blocks)),
        handovers=tuple(tuple(0.0 if a == b else number() for b in each) for a in each),
        presence=tuple(number() for _ in each),
        ends=tuple(tuple(number() - 1 for _ in each) for _ in each),
    )


def random_table(draw, blocks, components, names):
    return CostTable({name: random_cost(draw, blocks, components) for name in names}, AT)


def table_of(*rows):
    """``parameters`` that are a sum over blocks alone."""
    width = len(rows[0])
    zero = ((0.0,) * width,) * width
    return CostTable({"parameters": Cost(tuple(map(tuple, rows)), zero, (0.0,) * width, zero)}, AT)


@pytest.mark.parametrize("seed", range(120))
def test_dynamic_programming_finds_what_trying_all_paths_finds(seed):
    draw = random.Random(seed)
    blocks, components = draw.randrange(1, 6), draw.randrange(1, 4)
    names = draw.sample(["cache_bytes", "parameters", "decode_ms"], draw.randrange(4))
    table = random_table(draw, blocks, components, names)
    scores = [[draw.choice([0.0, 0.5, draw.random()]) for _ in range(components)] for _ in range(blocks)]
    paths = Space(blocks, components).paths()
    # limits that some paths keep, others just miss, and a few that none does
    limits = {name: max(0.5, table.costs[name].of(draw.choice(paths)) - draw.choice([0, 0, 1])) for name in names}

    def score(path):
        return sum(row[k] for row, k in zip(scores, path))

    within = [path for path in paths if all(table.costs[name].of(path) <= limits[name] for name in names)]
    found = best_by_table(scores, table, limits)
    assert (found is None) == (not within)
    if within:
        assert found in within
        assert score(found) == pytest.approx(max(map(score, within)))
        assert allowed_paths(Space(blocks, components), table, limits) == frozenset(within)
    least = min(table.excess(path, limits) for path in paths)
    assert table.excess(nearest(Space(blocks, components), table, limits), limits) == least


def test_many_blocks_are_no_matter():
    draw = random.Random(0)
    scores = [[draw.random(), draw.random()] for _ in range(40)]
    table = table_of(*[(1.0, 0.0)] * 40)
    path = best_by_table(scores, table, {"parameters": 10})
    gains = sorted((a - b for a, b in scores if a > b), reverse=True)
    assert len(gains) > 10
    assert path.count(0) == 10
    assert sum(row[k] for row, k in zip(scores, path)) == pytest.approx(sum(b for _, b in scores) + sum(gains[:10]))


def test_no_limits_allow_everything():
    space = Space(2, 2)
    assert constrained(space, table_of((1.0, 2.0), (1.0, 2.0)), {}, ["gpt", "mamba"]) is space


def test_a_limit_may_be_a_printed_cost():
    table = table_of((0.1, 5.0), (0.2, 5.0), (0.3, 5.0))
    assert (0, 0, 0) in allowed_paths(Space(3, 2), table, {"parameters": 0.6})


def test_limits_that_no_path_keeps_name_the_nearest():
    table = table_of((8.0, 3.0), (2.0, 4.0))
    with pytest.raises(ManticoreError) as caught:
        constrained(Space(2, 2), table, {"parameters": 4}, ["gpt", "mamba"])
    assert str(caught.value) == (
        "search: max: no path keeps the limits at tokens=16,batch=1; the nearest is [1, 0], mamba → gpt, "
        "with parameters 5 (limit 4). Fix: higher limits"
    )


def test_more_paths_than_are_listed_follow_a_rule():
    table = table_of(*[(1.0, 0.0)] * 24)
    space = constrained(Space(24, 2), table, {"parameters": 3}, ["gpt", "mamba"])
    parents = (0,) * 24, (1,) * 24
    assert not space.may_choose(parents[0])
    assert space.may_choose(parents[1])
    assert space.nearest(parents[1]) == parents[1]
    near = space.nearest(parents[0])
    assert near.count(0) == 3
    assert space.may_choose(near)
    with pytest.raises(ManticoreError, match=r"with parameters 24 \(limit 23\)"):
        constrained(Space(24, 2), table_of(*[(1.0, 2.0)] * 24), {"parameters": 23}, ["gpt", "mamba"])


def played(method, space, losses):
    """What a method chooses where these are the losses, and all that it has asked for."""
    curves, asked = Curves(space, True, range(1, 13)), []
    search = method(curves, 0)
    try:
        while True:
            for path, mark in next(search):
                asked.append(path)
                curves.add(path, Point(mark, 1, 1, 1, losses[path], -losses[path]))
    except StopIteration as end:
        return end.value, asked


@pytest.mark.parametrize("method", [race, blockwise])
@pytest.mark.parametrize("seed", range(5))
def test_methods_choose_what_is_allowed_and_look_at_the_parents(method, seed):
    draw = random.Random(seed)
    paths = Space(4, 2).paths()
    losses = {path: draw.random() for path in paths}
    space = Space(4, 2, frozenset(draw.sample(paths, 3)))
    choice, asked = played(method, space, losses)
    assert space.may_choose(choice.path)
    assert set(asked) <= {*space.allowed, *space.parents}
    assert set(asked) >= set(space.parents)


def test_blockwise_begins_beside_a_better_parent_that_is_too_dear():
    # each block is better with component 0, of which only two may be taken
    losses = {path: 1 - 0.1 * path.count(0) for path in Space(4, 2).paths()}
    space = constrained(Space(4, 2), table_of(*[(1.0, 0.0)] * 4), {"parameters": 2}, ["gpt", "mamba"])
    choice, asked = played(blockwise, space, losses)
    assert choice.path.count(0) == 2
    assert "nearest to the best parent" in choice.reason
    assert len(asked) == 5
    free, _ = played(blockwise, Space(4, 2), losses)
    assert free.path == (0, 0, 0, 0)
