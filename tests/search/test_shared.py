"""Shared weights: one sampled path trains per step and nothing else does; then paths are scored with them."""

import copy
from importlib import import_module
from pathlib import Path

import pytest
import torch
from forked import Script
from once import once
from tiny_search import TUNING, make_hybrid, recall, tiny_mamba, trained

import manticore
from manticore.errors import ManticoreError
from manticore.search.choice import Shared
from manticore.search.objective import Objective
from manticore.search.sampling import Sampler, sampled
from manticore.search.shared import SHARED, follow, shared_scores, step_costs
from manticore.search.space import Space
from manticore.settings import Finetune
from manticore.training.budget import flops_per_step
from manticore.training.trainable import set_trainable

# the attribute of that name is the function
shared = import_module("manticore.search.shared")
SPACE = Space(2, 2)
MIXINGS = ["translated", "routed", "gated"]


def objective(folder, mixing="translated", steps=6, **changes):
    """Its unit pays for so many steps of the first component."""
    hybrid = make_hybrid(mixing, dropout=0.1)
    settings = TUNING.model_copy(update=changes)
    set_trainable(hybrid, "all")
    unit = steps * flops_per_step(follow(hybrid, (0, 0)), settings.batch_size, recall().length)
    return Objective(hybrid, recall(), settings, unit, Path(folder), seed=3, cpu=True)


@pytest.mark.parametrize(("mixing", "accumulation"), [*((mixing, 1) for mixing in MIXINGS), ("translated", 2)])
def test_a_step_moves_the_sampled_path_as_it_would_move_alone_and_nothing_else(mixing, accumulation):
    supernet, path = make_hybrid(mixing), (1, 0)
    alone = manticore.discretize(supernet, path)
    before = copy.deepcopy(supernet.state_dict())

    ours = trained(supernet, [path, path], accumulation=accumulation)
    theirs = trained(alone, [], steps=2, accumulation=accumulation)

    kept, names = alone.state_dict(), {}
    for name, parameter in supernet.named_parameters(remove_duplicate=False):
        # a table that is a head too has two names, and the path may keep one
        names.setdefault(parameter, []).append(name)
    for parameter in names.keys() - set(supernet.mixing.mixture_parameters()):
        of_the_path = [name for name in names[parameter] if name in kept]
        expected = kept[of_the_path[0]] if of_the_path else before[names[parameter][0]]
        assert torch.equal(parameter, expected), names[parameter]
    # decay and moments are for what trained: AdamW has no state of the others
    assert len(ours.optimizer.state) == len(theirs.optimizer.state) < len(kept)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_the_state_of_a_path_waits_while_others_train(mixing):
    supernet = make_hybrid(mixing)
    trainer = trained(supernet, [(0, 0), (1, 1), (0, 0), (0, 0)])
    states = trainer.optimizer.state
    steps = {name: states[p]["step"].item() for name, p in supernet.named_parameters() if p in states}
    assert {count for name, count in steps.items() if name.startswith("component_0")} == {3}
    assert {count for name, count in steps.items() if name.startswith("component_1")} == {1}
    assert not any("projectors" in name for name in steps)


@pytest.mark.parametrize(("mixing", "trainable"), [("translated", "all"), ("gated", "all"), ("routed", "lora")])
def test_scores_are_those_of_the_discretized_path_bit_for_bit(mixing, trainable, tmp_path, monkeypatch):
    given = objective(tmp_path, mixing, trainable=trainable)
    before = copy.deepcopy(given.supernet.state_dict())
    kept = {}
    real = shared.held_out

    def looked_at(model, task, batch_size, examples):
        point = real(model, task, batch_size, examples)
        path = tuple(model.mixing.best_path())
        small = manticore.discretize(model, path)
        alone = manticore.evaluate(small, task, split="validation", batch_size=batch_size, max_examples=examples)
        kept[path] = (point, alone, real(small, task, batch_size, examples))
        return point

    monkeypatch.setattr(shared, "held_out", looked_at)
    found = shared_scores(given, Shared(SPACE, 1.0, "uniform"))

    assert list(found.points) == SPACE.paths()
    for path, point in found.points.items():
        scored, alone, whole = kept[path]
        assert (point.loss, point.metric) == (scored.loss, scored.metric)
        assert scored == whole
        assert scored.metric == alone[recall().primary_metric]
    # a copy trains
    after = given.supernet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_flops_are_the_sum_of_the_sampled_paths_and_equal_the_budget(tmp_path):
    given = objective(tmp_path, steps=20)
    found = shared_scores(given, Shared(SPACE, 1.5, "uniform"))
    sampler = Sampler(SPACE, "uniform", 3, [[0.5, 0.5]] * 2)
    alone = {}
    for path in SPACE.paths():
        small = manticore.discretize(given.supernet, path)
        set_trainable(small, "all")
        alone[path] = flops_per_step(small, 16, recall().length)
    total, steps = 0, 0
    while total + alone[sampler.path(steps)] <= 1.5 * given.unit:
        total += alone[sampler.path(steps)]
        steps += 1
    assert found.flops == total
    assert 1.5 * given.unit - max(alone.values()) < found.flops <= 1.5 * given.unit
    for path, point in found.points.items():
        small = manticore.discretize(given.supernet, path)
        assert point.spent == 8 * flops_per_step(small, 1, recall().length, backward=False)


@pytest.mark.parametrize(("mixing", "trainable"), [("translated", "all"), ("routed", "projectors")])
def test_costs_of_all_paths_follow_from_those_with_one_hand_over(mixing, trainable):
    # without fresh tables and with frozen layers, where gradients begin depends on the path
    supernet = manticore.combine([tiny_mamba(0), tiny_mamba(1)], num_blocks=3, mixing=mixing, check=False)
    set_trainable(supernet, trainable)
    costs = step_costs(supernet, Finetune(batch_size=4), 12)
    for path in Space(3, 2).paths():
        assert costs(path) == flops_per_step(follow(supernet, path), 4, 12), path


KILLED = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_shared import objective, SPACE
from manticore.search.choice import Shared
from importlib import import_module
shared = import_module("manticore.search.shared")

def die(step, steps, row):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

real = shared.held_out
def once(*arguments, count=[0]):
    count[0] += 1
    if count[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

for what in ("training", "scoring"):
    child = os.fork()
    if child == 0:
        if what == "scoring":
            shared.held_out = once
        shared.shared_scores(
            objective(os.path.join(sys.argv[2], what), steps=10, save_steps=3),
            Shared(SPACE, 1.0, "uniform"),
            progress=die if what == "training" else False,
        )
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        sys.exit(f"{what} did not die")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    def kill(out):
        code, said = Script(KILLED, __file__, str(out), said=out / "said.txt").end()
        assert code == 0, said

    return once(tmp_path_factory, "killed shared scores", kill)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return shared_scores(objective(tmp_path_factory.mktemp("whole"), steps=10), Shared(SPACE, 1.0, "uniform"))


@pytest.mark.parametrize("what", ["training", "scoring"])
def test_a_killed_one_goes_on_to_the_same_scores(what, killed, whole, caplog):
    caplog.set_level("INFO", logger="manticore")
    resumed = shared_scores(objective(killed / what, steps=10, save_steps=3), Shared(SPACE, 1.0, "uniform"))
    assert "goes on from" in caplog.text
    assert resumed == whole
    # the scores are all that is left, and are found again
    assert not (killed / what / SHARED / "checkpoints").exists()
    assert shared_scores(objective(killed / what, steps=10), Shared(SPACE, 1.0, "uniform")) == whole


def test_other_settings_are_refused(killed, whole):
    with pytest.raises(ManticoreError, match="started with units"):
        shared_scores(objective(killed / "scoring", steps=10), Shared(SPACE, 2.0, "uniform"))


def test_shared_weights_that_diverge_are_noted_with_what_they_cost(tmp_path):
    given = objective(tmp_path, lr=1e30, warmup_steps=0, max_grad_norm=0.0)
    found = shared_scores(given, Shared(SPACE, 1.0, "uniform"))
    assert found.points == {}
    assert found.failed.startswith("diverged")
    assert 0 < found.flops <= given.unit
    assert shared_scores(given, Shared(SPACE, 1.0, "uniform")) == found


def test_a_budget_below_a_step_is_refused():
    costs = step_costs(make_hybrid(), Finetune(batch_size=4), 12)
    with pytest.raises(ManticoreError, match="Fix: more shared_units"):
        sampled(Sampler(SPACE, "uniform", 0, []), costs, 10.0)
