"""The runs of a MAD setting: what they score, when they end, what is chosen where."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from manticore.errors import ManticoreError
from manticore.experiments.mad import training as mad_runs
from manticore.experiments.mad.training import train_runs
from manticore.tasks.mad.examples import generate, generate_validation
from manticore.tasks.mad.protocol import PROTOCOLS, Hyper
from manticore.tasks.mad.tasks import in_context_recall
from manticore.training.evaluate import evaluate
from tests.conftest import gpt_neo

OPTIONS = {"vocab_size": 8, "seq_len": 12}
SHORT = replace(PROTOCOLS["published"], epochs=2, batch_size=16)
GRID = [Hyper(1e-2, 0.0), Hyper(1e-3, 0.1)]


@pytest.fixture(scope="module")
def data():
    found = generate("in-context-recall", num_train_examples=40, num_test_examples=20, cache=False, **OPTIONS)
    return {**found, "validation": found["train"]}


@pytest.mark.parametrize("tokens", [mad_runs.CPU_TOKENS, 100, 1])
def test_runs_together_equal_runs_one_by_one(data, monkeypatch, tokens):
    """Also where a batch goes through in parts."""
    monkeypatch.setattr(mad_runs, "CPU_TOKENS", tokens)
    alone = train_runs(gpt_neo(8), data, GRID, SHORT, stacked=False)
    together = train_runs(gpt_neo(8), data, GRID, SHORT, stacked=True)
    assert [run.together for run in alone + together] == [1, 1, 2, 2]
    for one, other in zip(alone, together):
        assert one.hyper == other.hyper
        assert one.best_epoch == other.best_epoch
        assert one.test == pytest.approx(other.test, rel=1e-4)
        assert [row["train_loss"] for row in one.history] == pytest.approx(
            [row["train_loss"] for row in other.history], rel=1e-4
        )


def test_the_result_is_that_of_the_epoch_with_the_lowest_perplexity(data):
    (run,) = train_runs(gpt_neo(8), data, [Hyper(3e-2, 0.0)], replace(SHORT, epochs=6))
    perplexities = [row["mad_perplexity"] for row in run.history]
    assert run.best_epoch == int(np.argmin(perplexities)) + 1
    assert run.test == run.selection
    assert run.test["mad_perplexity"] == min(perplexities)
    assert run.ended == "all epochs"
    assert [row["lr"] for row in run.history] == pytest.approx(
        [3e-2 * replace(SHORT, epochs=6).lr_factor(epoch, 3e-2) for epoch in range(6)]
    )


def test_validation_chooses_and_test_is_only_scored(data):
    protocol = replace(SHORT, selection="validation")
    (run,) = train_runs(gpt_neo(8), data, [Hyper(1e-2, 0.0)], protocol)
    assert run.selection["mad_perplexity"] == min(row["mad_perplexity"] for row in run.history)
    assert run.test != run.selection
    shifted = {**data, "test": tuple(rows[:7] for rows in data["test"])}
    (other,) = train_runs(gpt_neo(8), shifted, [Hyper(1e-2, 0.0)], protocol)
    assert other.selection == run.selection
    with pytest.raises(ManticoreError, match="no split 'validation'"):
        train_runs(gpt_neo(8), {k: v for k, v in data.items() if k != "validation"}, GRID, protocol)


def test_a_solved_run_ends_and_the_others_go_on(data):
    easy = {split: (inputs, np.where(targets >= 0, 5, targets)) for split, (inputs, targets) in data.items()}
    runs = train_runs(gpt_neo(8), easy, [Hyper(3e-2, 0.0), Hyper(1e-6, 0.0)], replace(SHORT, epochs=4), stacked=True)
    assert runs[0].ended == "solved"
    assert len(runs[0].history) < 4
    assert runs[0].test["mad_macro"] == 1.0
    assert runs[1].ended == "all epochs"
    assert len(runs[1].history) == 4


def test_a_run_that_diverges_ends_without_spoiling_its_neighbours(data):
    runs = train_runs(gpt_neo(8), data, [Hyper(1e30, 0.0), Hyper(1e-3, 0.0)], SHORT, stacked=True)
    assert runs[0].ended == "not finite"
    assert runs[0].best_epoch is None
    (alone,) = train_runs(gpt_neo(8), data, [Hyper(1e-3, 0.0)], SHORT)
    assert runs[1].test == pytest.approx(alone.test, rel=1e-4)


def test_the_model_is_left_as_it_was_and_the_seed_changes_the_order_only(data):
    model = gpt_neo(8).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = train_runs(model, data, GRID[:1], SHORT, seed=0)[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    again, other = (train_runs(model, data, GRID[:1], SHORT, seed=seed)[0] for seed in (0, 1))
    assert again.history == first.history
    assert other.history != first.history


def test_metrics_are_those_of_evaluate(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path))
    task = in_context_recall(num_train_examples=40, num_test_examples=20, num_validation_examples=5, **OPTIONS)
    model = gpt_neo(8)
    still = replace(SHORT, epochs=1)
    (run,) = train_runs(model, data, [Hyper(1e-30, 0.0)], still)
    assert run.test == pytest.approx(evaluate(model, task), rel=1e-6)


def test_together_is_refused_in_one_line_where_a_model_cannot(data):
    class ReadsValues(type(gpt_neo(8))):
        def forward(self, input_ids, **kwargs):
            output = super().forward(input_ids, **kwargs)
            return output if output.logits.sum() > -1e9 else None

    model = ReadsValues(gpt_neo(8).config)
    with pytest.raises(ManticoreError, match=r"^mad: ReadsValues cannot train[^\n]*one-by-one[^\n]*$"):
        train_runs(model, data, GRID, SHORT, stacked=True)
    assert len(train_runs(model, data, GRID, SHORT)) == 2


def test_validation_examples_are_of_their_own_stream():
    test = generate("in-context-recall", num_train_examples=0, num_test_examples=30, cache=False, **OPTIONS)["test"]
    validation = generate_validation("in-context-recall", num_examples=30, **OPTIONS)
    assert validation[0].shape == test[0].shape
    assert not (validation[0] == test[0]).all()
