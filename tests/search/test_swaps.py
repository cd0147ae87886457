"""Single exchanges, scored untrained, and the best sum of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from test_constraints import played, random_table, table_of
from tiny_search import make_hybrid, recall

import manticore
from manticore.search.constraints import Within, constrained
from manticore.search.forecast import forecast
from manticore.search.space import Space
from manticore.search.swaps import swaps

NAMES = ["gpt", "mamba", "llama"]


def additive(draw, space):
    """Losses to which every block adds by itself."""
    parts = [[draw.random() for _ in range(space.num_components)] for _ in range(space.num_blocks)]
    return {path: sum(row[k] for row, k in zip(parts, path)) for path in space.paths()}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_where_losses_add_up_it_finds_the_best_of_all_paths_within_limits(seed, listed):
    draw = random.Random(seed)
    every = Space(draw.randrange(1, 6), draw.randrange(2, 4))
    losses, table = additive(draw, every), random_table(draw, every.num_blocks, every.num_components, ["cache_bytes"])
    limit = {"cache_bytes": max(0.5, table.costs["cache_bytes"].of(draw.choice(every.paths())))}
    # a rule stands for more paths than can be listed
    space = constrained(every, table, limit, NAMES) if listed else replace(every, allowed=Within(table, limit))
    choice, asked = played(swaps, space, losses)
    within = [path for path in every.paths() if table.keeps(path, limit)]
    assert losses[choice.path] == pytest.approx(min(losses[path] for path in within))
    assert choice.path in within
    singles = every.num_blocks * (every.num_components - 1)
    assert len(set(asked)) <= every.num_components + singles + 1


def test_exchanges_that_help_apart_and_harm_together_are_not_taken():
    losses = {path: 1.0 - 0.1 * (sum(path) == 1) + 0.5 * (sum(path) > 1) for path in Space(3, 2).paths()}
    losses[1, 1, 1] = 3.0
    choice, _ = played(swaps, Space(3, 2), losses)
    assert choice.path == (0, 0, 0)
    assert "none of which helps" in choice.reason


def test_the_reason_says_how_far_losses_were_from_adding_up():
    losses = {path: 1.0 + 0.1 * sum(path) + 0.2 * (sum(path) > 1) for path in Space(3, 2).paths()}
    space = constrained(Space(3, 2), table_of(*[(1.0, 0.0)] * 3), {"parameters": 1}, NAMES)
    choice, _ = played(swaps, space, losses)
    assert sum(choice.path) == 2
    assert "by +0.2000 nats if added up, by +0.4000 together" in choice.reason


def test_an_exchange_that_fails_is_not_chosen():
    space = Space(2, 2)
    losses = {(0, 0): 1.0, (0, 1): float("inf"), (1, 0): 0.9, (1, 1): float("inf")}
    choice, _ = played(swaps, space, losses)
    assert choice.path == (1, 0)


def test_a_plan_counts_every_exchange_and_no_training():
    course = forecast(swaps, Space(30, 2, fresh=frozenset({1})), list(range(1, 13)), 0)[-1]
    assert course.units == 0
    assert len(course.marks) >= 31


def test_a_search_of_real_models_leaves_their_weights_as_they_were(tmp_path):
    hybrid = make_hybrid()
    before = {name: tensor.clone() for name, tensor in hybrid.state_dict().items()}
    settings = {"method": "swaps", "validation_examples": 4, "batch_size": 2, "out": tmp_path, "cpu": True}
    result = manticore.search(hybrid, recall(), **settings)
    scored = {tuple(each.path): each.points[-1] for each in result.candidates}
    assert {(0, 0), (1, 1), (0, 1), (1, 0)} == scored.keys()
    assert all((point.mark, point.steps, point.flops) == (0, 0, 0) for point in scored.values())
    assert scored[tuple(result.path)].loss <= min(scored[0, 0].loss, scored[1, 1].loss)
    assert result.steps == result.trained_flops == 0
    assert result.flops == sum(point.spent for point in scored.values()) > 0
    assert "untrained" in result.verdict
    assert all(torch.equal(tensor, before[name]) for name, tensor in hybrid.state_dict().items())
    again = manticore.search(hybrid, recall(), resume=True, **settings)
    assert again.to_dict()["candidates"] == result.to_dict()["candidates"]
    tuned = manticore.finetune(result, recall(), steps=1, batch_size=2, cpu=True)
    assert tuned.model.config.path == result.path
