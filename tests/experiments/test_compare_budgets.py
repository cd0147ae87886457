"""A comparison at several budgets: one run passes all, with the numbers of separate ones, and goes on when killed."""

import json
import signal

import pytest
import torch
from copying_task import copying_task
from forked import Script
from test_compare import BATCH, budget_for, deterministic, parents, run

from manticore.errors import ManticoreError
from manticore.experiments import comparison_runs
from manticore.experiments.budgets import budgets_of, most_flops
from manticore.report.results import parse_results
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune

UNIT = 8_000_000
SHARES = [0, 0.3, 1]
TOO_HIGH = 1e30

RUN = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_compare import parents
from test_compare_budgets import SHARES, UNIT, over

def die(done, runs, name):
    # the second budget is about to begin
    if str(UNIT) in name:
        os.kill(os.getpid(), signal.SIGKILL)

over({"narrow": parents()["narrow"]}, sys.argv[2], budgets=SHARES, learning_rates=[1e-3, 1e-2], progress=die)
"""


def over(models, out=None, **options):
    return run(models, out, **{"budget_flops": UNIT, "seeds": [0], **options})


def scores(row):
    return [(entry["seed"], entry["lr"], entry["steps"], entry["metrics"]) for entry in row.seeds]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_run_that_passes_a_budget_has_the_numbers_of_one_that_ends_there(schedule):
    options = {"learning_rates": [1e-3, 1e-2], "warmup_steps": 3, "schedule": schedule, "seeds": [0, 1]}
    table = over(parents(), budgets=[1, 0.3], **options)
    assert [budget.name for budget in table.budgets] == ["0.3 × fine-tuning", "fine-tuning alone"]
    for index, share in enumerate([0.3, 1]):
        alone = over(parents(), budget_flops=int(share * UNIT), **options)
        for name in ("narrow", "wide"):
            assert scores(table.row(name, index)) == scores(alone.row(name))
            assert table.row(name, index).step_flops == alone.row(name).step_flops


def test_a_warm_up_that_is_left_open_is_that_of_the_smallest_budget(monkeypatch):
    monkeypatch.setattr(comparison_runs, "default_warmup", lambda steps: steps // 2)
    model = parents()["narrow"]
    unit = budget_for(model, 40)
    table = over({"narrow": model}, budgets=[0.5, 1], budget_flops=unit, seeds=[0])
    assert [table.row("narrow", index).seeds[0]["steps"] for index in (0, 1)] == [20, 40]
    expected = finetune(model, copying_task(), budget_flops=unit, batch_size=BATCH, warmup_steps=10, cpu=True)
    assert table.row("narrow", 1).seeds[0]["metrics"] == expected.metrics


def test_before_any_training_every_model_is_scored_as_it_is():
    models = parents()
    table = over(models, budgets=SHARES, seeds=[0, 1])
    assert table.budgets[0].name == "untrained"
    for name in models:
        row = table.row(name)
        assert (row.step_flops, row.rates, [entry["lr"] for entry in row.seeds]) == (0, [], [None, None])
        assert row.seeds[0]["metrics"] == evaluate(parents()[name], copying_task())
    assert table.main_budget == 2


def test_each_budget_takes_the_rate_that_scores_best_there(monkeypatch):
    # what validation says: the low rate early, the high one at the end
    said = {(1e-4, 2_400_000): 0.9, (3e-2, 2_400_000): 0.1, (1e-4, UNIT): 0.2, (3e-2, UNIT): 0.8}
    score = comparison_runs.ComparisonRuns._score

    def told(runs, run, folder, warmup):
        return {**score(runs, run, folder, warmup), "validation": said[run.lr, run.train_flops]}

    monkeypatch.setattr(comparison_runs.ComparisonRuns, "_score", told)
    done = []
    table = over(
        {"narrow": parents()["narrow"]}, budgets=[0.3, 1], learning_rates=[1e-4, 3e-2], seeds=[0, 1],
        progress=lambda _, runs, name: done.append(name),
    )  # fmt: skip
    assert [[entry["lr"] for entry in row.seeds] for row in table.rows] == [[1e-4, 1e-4], [3e-2, 3e-2]]
    # the second seed goes with each rate only where that is the best
    assert [name.split(" · ")[1:] for name in done if name.endswith("seed 1")] == [
        ["2400000 FLOPs", "lr 0.0001", "seed 1"],
        [f"{UNIT} FLOPs", "warm-up of 2400000 FLOPs", "lr 0.03", "seed 1"],
    ]


def test_everything_counts_at_every_budget():
    models = parents()
    table = over(models, budgets=SHARES, spent_flops={"wide": 2_000_000}, seeds=[0])
    assert [(b.name, b.flops, b.share, b.with_spent) for b in table.budgets] == [
        ("untrained", 0, 0.0, False),
        ("0.3 × fine-tuning", 2_400_000, 0.3, False),
        ("fine-tuning alone", UNIT, 1.0, False),
        ("everything, with no fine-tuning", 2_000_000, 0.0, True),
        ("everything, with 0.3 × fine-tuning", 4_400_000, 0.3, True),
        ("everything the hybrid cost", 10_000_000, 1.0, True),
    ]
    for index in range(3):
        first, again = table.row("wide", index).seeds[0], table.row("wide", index + 3).seeds[0]
        assert (again["metrics"], again["flops"]) == (first["metrics"], first["flops"] + 2_000_000)
        assert table.row("narrow", index + 3).seeds[0]["steps"] > table.row("narrow", index).seeds[0]["steps"]


def test_a_comparison_killed_between_two_budgets_goes_on_there(tmp_path, monkeypatch):
    options = {"budgets": SHARES, "learning_rates": [1e-3, 1e-2]}
    models = {"narrow": parents()["narrow"]}
    whole = over(models, tmp_path / "whole", **options)
    out = tmp_path / "killed"
    code, said = Script(RUN, __file__, str(out), said=tmp_path / "said.txt").end()
    assert code == -signal.SIGKILL, said
    begun = []
    train = comparison_runs.finetune

    def watched(model, task, settings, *, seed, out, **options):
        begun.append((settings.budget_flops, settings.lr, seed, sorted(p.name for p in out.rglob("checkpoint-*"))))
        return train(model, task, settings, seed=seed, out=out, **options)

    monkeypatch.setattr(comparison_runs, "finetune", watched)
    resumed = over(models, out, resume=True, **options)
    assert deterministic(resumed) == deterministic(whole)
    # what was passed is not trained again: from its checkpoint the run goes on
    flops, lr, seed, found = begun[0]
    assert (flops, lr, seed) == (UNIT, 1e-3, 0)
    assert found
    assert (int(0.3 * UNIT), 1e-3, 0) not in [each[:3] for each in begun]
    assert not list((out / "units").iterdir())


def test_budgets_in_processes_give_the_same_table(tmp_path):
    torch.set_num_threads(1)
    told = []
    options = {"budgets": SHARES, "learning_rates": [1e-3, 1e-2], "seeds": [0, 1]}
    alone = over(parents(), **options)
    together = over(
        parents(), tmp_path, workers=2, progress=lambda done, runs, name: told.append((done, runs, name)), **options
    )
    assert deterministic(together) == deterministic(alone)
    # two models: untrained once per seed, each budget with two rates and the second seed
    assert [done for done, *_ in told] == list(range(2 * (2 + 2 * 3)))
    assert {runs for _, runs, _ in told} == {2 * (2 + 2 * 3)}


def test_a_rate_that_diverges_does_so_at_every_later_budget():
    table = over({"narrow": parents()["narrow"]}, budgets=SHARES, learning_rates=[TOO_HIGH, 1e-3])
    assert [table.row("narrow", index).diverged for index in range(3)] == [[], [TOO_HIGH], [TOO_HIGH]]
    assert {entry["lr"] for row in table.rows for entry in row.seeds} == {None, 1e-3}


def test_a_record_over_budgets_is_read_back():
    record = {"schema_version": 1, "compare": over(parents(), budgets=SHARES, learning_rates=[1e-3, 1e-2]).to_dict()}
    compare = parse_results(json.loads(json.dumps(record))).compare
    assert (compare.kinds, compare.over_budgets, compare.main_budget) == ([[0, 1, 2]], True, 2)
    row = compare.row("narrow", 2)
    assert row.rates == (1e-3, 1e-2)
    assert row.edge == (("lowest" if row.seeds[0].lr == 1e-3 else "highest"), row.seeds[0].lr)
    assert compare.row("narrow", 0).edge is None


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([], r"budgets is \[\] .expected shares of the fine-tuning budget, or FLOPs, one to 64.. Fix: for instance 0"),
        ([-0.5], r"budgets is \[-0.5\] .expected shares"),
        ([float("nan")], "budgets is .nan. .expected shares"),
        ([0.5, 0.5], r"budgets: \[0.5, 0.5\] holds one twice. Fix: give different ones"),
        ([5000], r"budgets: 5000 is neither a share of the fine-tuning budget \(0 to 1,000\) nor FLOPs \(1,000,000 or"),
        ([1, UNIT], r"two budgets are of 8e.06 FLOPs \(the fine-tuning budget is"),
        ([1e-9], "budget_flops is 1, one step costs"),
        (["half"], "budgets is .'half'. .expected shares"),
    ],
)
def test_budgets_that_make_no_sense_are_refused_in_one_line(budgets, message):
    with pytest.raises(ManticoreError, match=message) as refused:
        over({"narrow": parents()["narrow"]}, budgets=budgets, seeds=[0])
    assert "\n" not in str(refused.value)


def test_budgets_are_shares_or_flops_in_any_order():
    found = budgets_of([2e12, 0, 1], 10**12, 0)
    assert [(b.name, b.flops) for b in found] == [
        ("untrained", 0),
        ("fine-tuning alone", 10**12),
        ("2 × fine-tuning", 2 * 10**12),
    ]
    # exactly, where a float would round
    assert budgets_of([10**16 + 1], 10**12, 0)[0].flops == 10**16 + 1


def test_the_most_that_a_model_can_take():
    # all three rates to the end, and each of two more seeds with every rate to one of the budgets
    assert most_flops([1, 4, 10], rates=3, seeds=3, one_run=True) == 30 + 2 * (10 + 4 + 1)
    assert most_flops([1, 4, 10], rates=1, seeds=3, one_run=True) == 30
    assert most_flops([1, 4, 10], rates=2, seeds=1, one_run=False) == 30


def test_a_larger_model_is_a_row_and_no_part_of_the_ensemble(tmp_path):
    models = parents()
    models["wide"].save_pretrained(tmp_path / "big")
    (tmp_path / "big" / "pretraining.json").write_text(json.dumps({"steps": 7, "batch_size": 2, "length": 16}))
    table = over({"narrow": models["narrow"]}, larger=f"giant={tmp_path / 'big'}", ensemble=True, seeds=[0])
    assert [row.model for row in table.rows] == ["narrow", "larger: giant"]
    (note,) = table.notes
    assert note.startswith("larger: giant was pretrained with ")
    assert [entry.model for entry in table.untrained] == ["narrow", "larger: giant"]


def test_a_larger_model_is_no_hybrid(hybrid, tmp_path):
    with pytest.raises(
        ManticoreError, match=r"compare: larger is a hybrid \(manticore\). Fix: give a single pretrained"
    ):
        over(parents(), larger=hybrid)
