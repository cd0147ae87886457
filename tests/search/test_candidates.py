"""The default search on tiny models: candidates are ordinary fine-tunings, and the winner goes on."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from tiny_search import make_hybrid, recall

import manticore
from manticore.errors import ManticoreError, NotFiniteError
from manticore.training.budget import flops_per_step
from manticore.training.trainer import TaskTrainer

BATCH = 8
TUNING = {"batch_size": BATCH, "lr": 1e-2, "cpu": True}


def unit(steps=12):
    """So many steps of the costliest parent."""
    hybrid = make_hybrid()
    costs = [flops_per_step(manticore.discretize(hybrid, [k, k]), BATCH, recall().length) for k in range(2)]
    return steps * max(costs)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A hybrid, and what a race in it found."""
    out = tmp_path_factory.mktemp("search") / "out"
    hybrid = make_hybrid()
    before = {name: tensor.clone() for name, tensor in hybrid.state_dict().items()}
    result = manticore.search(hybrid, recall(), finetune_flops=unit(), out=out, **TUNING)
    assert all(torch.equal(tensor, before[name]) for name, tensor in hybrid.state_dict().items())
    return result, out


def without_seconds(result):
    return {name: value for name, value in result.to_dict().items() if name != "seconds"}


def test_all_paths_are_candidates_and_one_is_chosen(searched):
    result, _ = searched
    assert {tuple(each.path) for each in result.candidates} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert [each.path for each in result.candidates if each.chosen] == [result.path]
    assert result.model.config.path == result.path
    assert result.weights.argmax(-1).tolist() == result.path
    assert result.verdict.startswith("gpt_neo → mamba is ahead of the best parent, gpt_neo, by ")
    json.dumps(result.to_dict())


def test_candidates_have_spent_the_same_at_a_mark(searched):
    result, _ = searched
    for mark in {point.mark for each in result.candidates for point in each.points}:
        spent = [point.flops for each in result.candidates for point in each.points if point.mark == mark]
        assert max(spent) <= mark * unit() / 12
        # a step fewer at most
        assert max(spent) - min(spent) < unit() / 12


def test_everything_that_was_spent_is_counted(searched):
    result, _ = searched
    training = sum(each.points[-1].flops for each in result.candidates)
    scoring = sum(point.spent for each in result.candidates for point in each.points)
    assert result.flops == training + scoring
    chosen = next(each for each in result.candidates if each.chosen)
    assert result.trained_flops == chosen.points[-1].flops


def test_seconds_are_those_of_all_training_so_far(searched):
    result, out = searched
    chosen = next(each for each in result.candidates if each.chosen)
    clocks = {file.parent.name: float(file.read_text()) for file in out.rglob("checkpoint-*/seconds.json")}
    for before, after in itertools.pairwise(chosen.points):
        assert before.seconds <= clocks[f"checkpoint-{before.steps}"] < after.seconds
    assert result.seconds >= sum(each.points[0].seconds for each in result.candidates)


def test_fine_tuning_goes_on_as_if_it_had_never_been_a_search(searched, caplog):
    result, _ = searched
    on = manticore.finetune(result, recall(), **TUNING)
    assert on.flops <= unit() < on.flops + unit() / 12
    alone = manticore.discretize(make_hybrid(), result.path)
    warmup = result.begun.completed(manticore.settings.Finetune()).warmup_steps
    whole = manticore.finetune(alone, recall(), budget_flops=unit(), warmup_steps=warmup, **TUNING)
    assert on.metrics == whole.metrics
    assert on.history[-1] == whole.history[-1]
    assert all(torch.equal(a, b) for a, b in zip(on.model.state_dict().values(), whole.model.state_dict().values()))
    assert "anew" not in caplog.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lr": 2e-2}, "lr=0.01, not 0.02"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"steps": 1}, "steps, not 1"),
        ({"schedule": "cosine"}, "schedule='constant', not 'cosine'"),
        ({"batch_size": 4}, "batch_size=8, not 4"),
    ],
)
def test_other_settings_start_anew_from_what_was_trained_and_say_so(searched, caplog, changed, said):
    result, _ = searched
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    assert manticore.discretize(result) is result.model
    length = {} if "steps" in changed else {"budget_flops": unit()}
    manticore.finetune(result, recall(), **{**TUNING, **length, **changed})
    assert said in caplog.text
    assert "starts anew from the weights that the search left" in caplog.text
    result.model.load_state_dict(before)


def test_a_finished_search_is_read_and_not_repeated(searched):
    result, out = searched
    written = {file: file.stat().st_mtime_ns for file in out.rglob("checkpoint-*/*")}
    again = manticore.search(make_hybrid(), recall(), finetune_flops=unit(), out=out, resume=True, **TUNING)
    assert again.to_dict() == result.to_dict()
    assert {file: file.stat().st_mtime_ns for file in out.rglob("checkpoint-*/*")} == written
    with pytest.raises(ManticoreError, match="holds results of an earlier search"):
        manticore.search(make_hybrid(), recall(), finetune_flops=unit(), out=out, **TUNING)
    with pytest.raises(ManticoreError, match="is of another model"):
        manticore.search(make_hybrid(seed=1), recall(), finetune_flops=unit(), out=out, resume=True, **TUNING)
    with pytest.raises(ManticoreError, match=r"was started with unit="):
        manticore.search(make_hybrid(), recall(), finetune_flops=2 * unit(), out=out, resume=True, **TUNING)


def test_only_the_winner_keeps_checkpoints(searched):
    result, out = searched
    kept = {file.parent.parent.name for file in out.rglob("checkpoint-*")}
    assert kept == {"-".join(map(str, result.path))}


def test_without_a_folder_it_finds_the_same(searched):
    result, _ = searched
    again = manticore.search(make_hybrid(), recall(), finetune_flops=unit(), **TUNING)
    assert without_seconds(again)["path"] == result.path
    ours, theirs = ([[p.loss for p in each.points] for each in found.candidates] for found in (again, result))
    assert ours == theirs
    length = {"budget_flops": unit(), "warmup_steps": again.begun.completed(manticore.settings.Finetune()).warmup_steps}
    alone = manticore.finetune(manticore.discretize(make_hybrid(), again.path), recall(), **length, **TUNING)
    assert manticore.finetune(again, recall(), **TUNING).metrics == alone.metrics


def test_a_candidate_that_diverges_is_marked_and_the_search_goes_on(caplog):
    hybrid = make_hybrid()
    with torch.no_grad():
        # where the Mamba hands over to the GPT-Neo, and nowhere else
        projector = hybrid.mixing.projectors["1_1_0"]
        next(iter(projector.parameters())).mul_(1e38)
    result = manticore.search(hybrid, recall(), finetune_flops=unit(), **TUNING)
    failed = {tuple(each.path): each.failed for each in result.candidates if each.failed}
    assert list(failed) == [(1, 0)]
    assert "diverged" in failed[1, 0]
    assert result.path != [1, 0]
    assert "goes on without it" in caplog.text


def test_what_a_failed_candidate_had_spent_is_counted(monkeypatch):
    trained = TaskTrainer.training_step

    def step(self, *arguments, **named):
        if self.model.config.path == [1, 0] and self.state.global_step >= 6:
            raise torch.OutOfMemoryError
        return trained(self, *arguments, **named)

    monkeypatch.setattr(TaskTrainer, "training_step", step)
    result = manticore.search(make_hybrid(), recall(), method="exhaustive", finetune_flops=unit(), **TUNING)
    failed = [each for each in result.candidates if each.failed]
    assert [(each.path, each.failed) for each in failed] == [([1, 0], "out of memory")]
    # scored once before it ended
    assert [point.mark for point in failed[0].points] == [4]
    assert result.flops == sum(each.flops for each in result.candidates)


def test_a_winner_that_was_thrown_away_is_trained_again(searched, tmp_path):
    result, out = searched
    shutil.copytree(out, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/candidates")
    options = {"finetune_flops": unit(), "out": tmp_path / "again", "resume": True, **TUNING}
    again = manticore.search(make_hybrid(), recall(), **options)
    assert again.path == result.path
    fresh = manticore.search(make_hybrid(), recall(), finetune_flops=unit(), **TUNING).model.state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in again.model.state_dict().items())


def test_steps_cost_what_they_cost_in_fine_tuning_where_activations_are_recomputed():
    options = {"gradient_checkpointing": True, **TUNING}
    found = manticore.search(make_hybrid(), recall(), method="exhaustive", finetune_flops=unit(24), **options)
    tuned = manticore.finetune(manticore.discretize(make_hybrid(), found.path), recall(), steps=1, **options)
    chosen = next(each for each in found.candidates if each.chosen)
    assert [point.flops for point in chosen.points] == [point.steps * tuned.flops for point in chosen.points]


def test_what_left_nothing_to_go_on_with_is_fine_tuned_from_its_weights():
    learned = manticore.search(make_hybrid(), recall(), method="darts", steps=1, batch_size=8, cpu=True)
    assert manticore.finetune(learned, recall(), steps=1, **TUNING).model is learned.model
    adapted = manticore.search(make_hybrid(), recall(), finetune_flops=unit(), trainable="lora", lora_rank=2, **TUNING)
    assert adapted.begun is None
    assert manticore.finetune(adapted, recall(), steps=1, **TUNING).model is adapted.model


def test_another_model_does_not_go_on_in_the_folder_of_one_that_was_fine_tuned_on(searched, tmp_path):
    result, _ = searched
    manticore.finetune(result, recall(), steps=9, **{**TUNING, "lr": 3e-2}, out=tmp_path)
    with torch.no_grad():
        next(iter(result.model.parameters())).add_(1.0)
    with pytest.raises(ManticoreError, match="is of another model"):
        manticore.finetune(result, recall(), steps=9, **{**TUNING, "lr": 3e-2}, out=tmp_path, resume=True)


def test_where_nothing_trains_the_search_says_so():
    with pytest.raises(NotFiniteError, match="every candidate failed"):
        manticore.search(make_hybrid(), recall(), finetune_flops=unit(), batch_size=BATCH, lr=1e38, cpu=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 3}, "method 'auto' has no steps"),
        ({"budget_flops": 1e9}, "method 'auto' has no budget_flops"),
        ({"order": "bilevel"}, "method 'auto' has no order"),
        ({"method": "race", "mixture_lr": 0.1}, "method 'race' has no mixture_lr"),
        ({"method": "race", "max_handovers": 1}, "method 'race' has no max_handovers"),
        ({"method": "darts", "finetune_flops": 1e9}, "method 'darts' has no finetune_flops"),
        ({"method": "gaea", "workers": 2}, "method 'gaea' has no workers"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"finetune_flops": 1e3}, "fewer than 12 steps"),
        ({"method": "rase"}, "Did you mean 'race'?"),
    ],
)
def test_what_does_not_fit_the_method_is_refused(options, said):
    with pytest.raises(ManticoreError, match=r"Fix|Did you mean") as refused:
        manticore.search(make_hybrid(), recall(), cpu=True, **options)
    assert said in str(refused.value)
