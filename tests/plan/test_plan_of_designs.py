"""What ``manticore plan`` says of a study of designs is what the study then trains and spends."""

from __future__ import annotations

import pytest
from tiny_designs import recipe
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.plan.designs import plan_study
from manticore.schema.loading import load_design
from manticore.search.designs.genomes import GenomeSpace

GENOMES = {"space": "genomes", "space_options": {"livs": 2, "width": 8, "classes": ["sa-1", "gmemless"], "least": 1}}
RANDOM = {"method": "random", "method_options": {}}


def planned(folder, **changes):
    file = recipe(folder, **changes)
    found = load_design(str(file)).recipe
    return plan_study(found), manticore.design(settings=found.design, seed=found.seed, cpu=True)


def test_all_designs_of_a_space_cost_what_was_said(tmp_path):
    plan, study = planned(tmp_path, **RANDOM, trials=8, steps=1, repeats=2, baselines=True)
    assert (plan.designs, plan.trials, plan.baselines) == (8, len(study.trials), len(study.baselines))
    assert plan.flops == study.flops
    costs = sorted(trial.trained.flops for trial in study.trials)
    assert plan.flops_of_one == (costs[0], costs[4], costs[-1])
    sizes = sorted(trial.measures["parameters"] for trial in study.trials)
    assert plan.parameters == (sizes[0], sizes[4], sizes[-1])
    assert plan.tokens == max(tokens for trial in study.trials for tokens, _ in trial.trained.curve)


@pytest.mark.parametrize(
    ("changes", "trials"),
    [
        # 4 at random, 2 of 4 in a generation anew
        ({"trials": 8, "method_options": {"population": 4, "generations": 1}}, 6),
        ({"trials": 5, "method_options": {"population": 4, "generations": 3}}, 5),
        ({"trials": 7, **RANDOM, "stop": "median", "stop_after": 1}, 7),
        ({"trials": 6, **GENOMES}, 6),
    ],
)
def test_no_study_trains_or_spends_more_than_was_said(tmp_path, changes, trials):
    plan, study = planned(tmp_path, **{**changes, "steps": 8 if "stop" in changes else 1})
    assert plan.trials == len(study.trials) == trials
    assert plan.designs >= trials
    least, _, most = plan.flops_of_one
    spent = [trial.trained.flops for trial in study.trials]
    assert max(spent) <= most
    if "stop" not in changes:
        assert min(spent) >= least
    assert study.flops == sum(spent) <= trials * most


def test_designs_that_mean_the_same_count_once(tmp_path):
    plan = plan_study(load_design(str(recipe(tmp_path, trials=4, **GENOMES))).recipe)
    space = GenomeSpace(**GENOMES["space_options"])
    assert plan.designs == space.size >= len(list(space.designs()))


def test_a_tokenizer_s_own_vocabulary_is_counted(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokens")
    bytes_, other = (
        plan_study(load_design(str(recipe(tmp_path, trials=8, **RANDOM, **changes))).recipe)
        for changes in ({}, {"tokenizer": str(tmp_path / "tokens")})
    )
    assert other.flops > bytes_.flops
    assert other.parameters == bytes_.parameters


def test_the_verb_says_so(tmp_path):
    file = recipe(tmp_path, trials=5)
    done = CliRunner().invoke(app, ["plan", str(file), "design.trials=6"])
    assert done.exit_code == 0, done.output
    assert "at most 6 of 8 designs" in done.output
    assert f"next: manticore design {file} design.trials=6" in done.output
