"""Landscapes: every path is fine-tuned alike, and what a search found has a place among them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_search import make_hybrid, recall

from manticore.errors import ManticoreError
from manticore.experiments.landscapes import Landscape, landscape
from manticore.hybrid.discretize import discretize
from manticore.training.finetune import finetune


def test_every_path_scores_what_it_scores_when_it_is_fine_tuned_alone():
    supernet, task = make_hybrid(), recall()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    settings = {"steps": 2, "batch_size": 4, "seed": 3, "cpu": True}
    told = []
    found = landscape(supernet, task, progress=lambda done, path: told.append((done, path)), **settings)
    assert told == [(1, (0, 0)), (2, (0, 1)), (3, (1, 0)), (4, (1, 1))]
    assert found.metrics[1, 0] == finetune(discretize(supernet, [1, 0]), task, **settings).metrics
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_a_stopped_landscape_goes_on_and_other_weights_are_refused(tmp_path):
    settings = {"steps": 1, "batch_size": 4, "cpu": True, "out": tmp_path}

    def stop(done, path):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        landscape(make_hybrid(), recall(), progress=stop, **settings)
    lines = (tmp_path / "units.jsonl").read_text().splitlines()
    resumed = landscape(make_hybrid(), recall(), resume=True, **settings)
    assert (tmp_path / "units.jsonl").read_text().splitlines()[:4] == lines
    assert resumed == landscape(make_hybrid(), recall(), steps=1, batch_size=4, cpu=True)
    with pytest.raises(ManticoreError, match=r"landscape: .* is of another model"):
        landscape(make_hybrid(seed=1), recall(), resume=True, **settings)


def test_only_the_given_paths_are_candidates():
    found = landscape(make_hybrid(), recall(), paths=[[1, 1]], steps=1, batch_size=4, cpu=True)
    assert found.best == (1, 1)
    assert found.regret([1, 1]) == 0
    with pytest.raises(KeyError):
        found.regret([0, 1])


@given(
    scores=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    higher=st.booleans(),
)
def test_regret_goes_from_the_best_to_the_worst(scores, higher):
    made = Landscape({(index,): {"score": score} for index, score in enumerate(scores)}, "score", higher)
    best, worst = (max(scores), min(scores)) if higher else (min(scores), max(scores))
    assert scores[made.best[0]] == best
    regrets = [made.regret([index]) for index in range(len(scores))]
    assert min(regrets) == 0
    assert all(0 <= regret <= 1 for regret in regrets)
    assert max(regrets) == (1 if best != worst else 0)
    assert made.regret([scores.index(worst)]) == max(regrets)
    assert made.blind_shortfall <= abs(best - worst) + 1e-9
