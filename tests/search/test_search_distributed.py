"""Data-parallel search: two processes find what one finds that cuts its batches in two."""

from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_search import make_hybrid, recall, trained
from two_processes import run_by_two

from manticore.search.search import search

SEARCHES = {
    "dash, bilevel": {"method": "dash", "order": "bilevel", "mixture_lr": 0.2},
    "darts, simultaneous": {"method": "darts", "order": "simultaneous", "mixture_lr": 0.1},
    "gaea, alternating": {"method": "gaea", "order": "alternating", "mixture_lr": 0.5},
}


def run(name, out, accumulation=1):
    """One search; a routed supernet has two kinds of mixture weights."""
    mixing = "routed" if "gaea" in name else "translated"
    result = search(
        make_hybrid(mixing=mixing),
        recall(),
        **SEARCHES[name],
        steps=4,
        batch_size=8,
        accumulation=accumulation,
        cpu=True,
        out=out,
    )
    mixture = [parameter.tolist() for parameter in result.model.mixing.mixture_parameters()]
    return {"mixture": mixture, "losses": [row["loss"] for row in result.history], "path": result.path}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """Folder and, per rank, the outcome of every search."""
    return run_by_two(tmp_path_factory, __file__, "ddp-cpu")


def sampled(accumulation=1):
    """Two paths in turns; the weights of both layers of the first component and what AdamW has counted for them."""
    supernet = make_hybrid()
    states = trained(supernet, [(0, 1), (1, 1), (0, 1)], accumulation=accumulation).optimizer.state
    layers = [layer.mlp.c_fc.weight for layer in supernet.component_0.transformer.h]
    counts = [int(states[weight]["step"]) if weight in states else 0 for weight in layers]
    return {"weights": [weight.tolist() for weight in layers], "counts": counts, "states": len(states)}


def work(folder):
    """What each of the two processes does."""
    return {name: run(name, Path(folder, name)) for name in SEARCHES} | {"sampled": sampled()}


@cache
def by_one(name, folder):
    return run(name, folder, accumulation=2)


@pytest.mark.parametrize("name", SEARCHES)
def test_both_processes_hold_the_same_mixture_weights_bit_for_bit(by_two, name):
    _, (first, second) = by_two
    assert first[name] == second[name]


@pytest.mark.parametrize("name", SEARCHES)
def test_two_processes_search_like_one_with_twice_the_accumulation(by_two, name, tmp_path):
    _, (both, _) = by_two
    alone = by_one(name, tmp_path / "alone")
    # the same gradients, summed in another order: float32 rounding, which Adam may raise where a gradient is near zero
    torch.testing.assert_close(torch.tensor(both[name]["losses"]), torch.tensor(alone["losses"]), atol=2e-6, rtol=0)
    for shared, own in zip(both[name]["mixture"], alone["mixture"]):
        torch.testing.assert_close(torch.tensor(shared), torch.tensor(own), atol=1e-5, rtol=0)
    assert both[name]["path"] == alone["path"]


def test_the_mixture_log_is_written_once(by_two):
    folder, _ = by_two
    lines = (folder / "dash, bilevel" / "mixture_weights.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 2


def test_two_processes_train_the_sampled_path_and_nothing_else(by_two):
    _, (first, second) = by_two
    alone = sampled(accumulation=2)
    assert first["sampled"] == second["sampled"]
    assert first["sampled"]["counts"] == alone["counts"] == [2, 0]
    assert first["sampled"]["states"] == alone["states"]
    torch.testing.assert_close(
        torch.tensor(first["sampled"]["weights"]), torch.tensor(alone["weights"]), atol=1e-5, rtol=0
    )
