"""One-hot paths scored after mixture weights were learned: what they score, what that costs, which they are."""

import math

import pytest
import torch
from tiny_search import make_hybrid, recall

import manticore
from manticore.search.differentiable.one_hot import MOST_LISTED, OneHot, compared, one_hot_paths
from manticore.search.objective import held_out
from manticore.search.search import search
from manticore.search.space import Space
from manticore.training.budget import flops_per_step

QUICK = {"method": "darts", "steps": 4, "batch_size": 8, "mixture_lr": 0.1, "cpu": True}


def scored(model, path):
    return held_out(manticore.discretize(model, path), recall(), 8, 8)


@pytest.mark.parametrize(
    ("mixing", "options"),
    [
        ("translated", {}),
        ("routed", {"method": "gaea"}),
        ("gated", {"method": "dash"}),
        ("translated", {"trainable": "lora", "lora_rank": 2}),
    ],
)
def test_every_path_has_the_score_of_its_discretized_hybrid_and_parents_theirs_before(mixing, options):
    result = search(make_hybrid(mixing), recall(), **{**QUICK, **options})
    assert [each.path for each in result.shared] == [[0, 0], [1, 1], [0, 1], [1, 0]]
    assert result.candidates == []
    assert result.shared_examples == 8
    for each in result.shared:
        *before, after = each.points
        ours = scored(result.model, each.path)
        assert (after.steps, after.losses, after.metric) == (4, ours.losses, ours.metric)
        assert [point.steps for point in before] == ([0] if each.path in ([0, 0], [1, 1]) else [])
        for point in before:
            as_it_was = scored(make_hybrid(mixing), each.path)
            assert (point.losses, point.metric) == (as_it_was.losses, as_it_was.metric)
        model = manticore.discretize(result.model, each.path)
        assert after.spent == 8 * flops_per_step(model, 1, recall().length, backward=False)
    # they choose nothing
    assert result.path == result.model.mixing.best_path()


def test_scoring_is_paid_and_changes_nothing():
    hybrid = make_hybrid()
    result = search(hybrid, recall(), **QUICK)
    training = 4 * flops_per_step(learnable(make_hybrid()), 8, recall().length)
    assert result.flops == training + sum(each.flops for each in result.shared)
    before = {name: tensor.clone() for name, tensor in hybrid.state_dict().items()}
    state = torch.get_rng_state()
    OneHot(hybrid, recall(), batch_size=8, most=8, training=1e12).scores([(0, 0), (1, 0)], 4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in hybrid.state_dict().items())


def learnable(hybrid):
    from manticore.kernels.mamba import use_selective_scan

    use_selective_scan(hybrid)
    for parameter in hybrid.mixing.mixture_parameters():
        parameter.requires_grad_(True)
    return hybrid


@pytest.mark.parametrize("found", [(0, 1, 0, 0, 1), (1, 1, 1, 1, 1)], ids=str)
def test_of_many_paths_the_parents_and_the_neighbours_of_the_found_one_are_scored(found):
    space = Space(5, 2)
    assert space.size > MOST_LISTED
    paths = one_hot_paths(space, found)
    assert len(set(paths)) == len(paths)
    assert set(paths) == {
        (0,) * 5, (1,) * 5, found, *((*found[:n], 1 - found[n], *found[n + 1 :]) for n in range(5)),
    }  # fmt: skip
    assert paths[:2] == space.parents
    few = Space(4, 2)
    assert (few.size, set(one_hot_paths(few, (0, 1, 0, 0)))) == (MOST_LISTED, set(few.paths()))


def test_scoring_costs_no_more_than_the_training_did_or_32_examples():
    space = Space(5, 3)
    paths = 3 + (3 + 1 + 5 * 2)
    assert compared(space, 256, 1e12, 1.0) == 256
    assert compared(space, 256, 100 * paths, 1.0) == 100
    assert compared(space, 256, 0, 1.0) == 32
    assert compared(space, 8, 0, 1.0) == 8


def test_a_path_without_a_finite_score_is_marked_and_the_others_have_theirs():
    hybrid = make_hybrid()
    with torch.no_grad():
        next(hybrid.mixing.projectors["1_0_1"].parameters()).fill_(math.nan)
    paths = Space(2, 2).paths()
    found = {
        tuple(each.path): each for each in OneHot(hybrid, recall(), batch_size=8, most=8, training=1).scores(paths, 0)
    }
    assert "NaN" in found[0, 1].failed
    assert found[0, 1].points == []
    assert all(found[path].points and not found[path].failed for path in paths if path != (0, 1))


def test_the_verdict_names_the_path_that_scores_best():
    result = search(make_hybrid(), recall(), **QUICK)
    ends = {tuple(each.path): each.points[-1] for each in result.shared}
    best = min(ends, key=lambda path: (-ends[path].metric, ends[path].loss))
    own = "gpt_neo → mamba has the largest mixture weights; of 4 one-hot paths of the supernet "
    for found in ends:
        told = type(result)(**{**vars(result), "path": list(found)}).worded(["gpt_neo", "mamba"])
        if found == (0, 1):
            assert told.startswith(own)
        alone = f"it scores best on held-out data (accuracy {ends[best].metric:.3f})"
        assert (alone in told) is (found == best)
        assert f"against {ends[found].metric:.3f})" in told or found == best
