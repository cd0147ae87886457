"""Equal compute: who gets how many steps, what is repeated after a kill, and what the table says."""

import json
import signal
from pathlib import Path

import pytest
import torch
from copying_task import LENGTH, copying_task
from forked import Script

from manticore.errors import ManticoreError
from manticore.experiments.compare import compare
from manticore.experiments.intervals import mean_interval, t_quantile
from manticore.experiments.models import add_ensembles, build, named, plain_models
from manticore.hybrid.combine import combine
from manticore.hybrid.discretize import discretize
from manticore.training.budget import count_parameters, flops_per_step
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune

BATCH = 8

RUN = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_compare import parents, run

def die(done, runs, name):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

run(parents(), sys.argv[2], progress=die)
"""


def parents():
    """Two tiny models, the same in every process."""
    from transformers import AutoModelForCausalLM, GPT2Config

    models = {}
    for name, width in (("narrow", 8), ("wide", 16)):
        torch.manual_seed(width)
        config = GPT2Config(vocab_size=13, n_embd=width, n_layer=1, n_head=2, n_positions=16)
        models[name] = AutoModelForCausalLM.from_config(config)
    return models


def budget_for(model, steps: float) -> int:
    return int(steps * flops_per_step(model, BATCH, LENGTH))


def run(models, out=None, **options):
    few = {"budget_flops": 4_000_000, "seeds": (0, 1), "learning_rates": [1e-3], "ensemble": False, "cpu": True}
    settings = few | options
    return compare(models, copying_task(), batch_size=BATCH, out=out, **settings)


def deterministic(comparison) -> dict:
    """Without the seconds."""
    table = comparison.to_dict()
    for row in table["rows"]:
        for entry in row["seeds"]:
            del entry["seconds"]
    return table


def test_everyone_spends_the_same_flops_and_the_given_models_stay_as_they_are(gpt, mamba, hybrid):
    small = discretize(hybrid, [1, 0])
    models = {"gpt": gpt, "mamba": mamba, "supernet (soft)": hybrid, "hybrid": small}
    before = {name: [p.clone() for p in model.parameters()] for name, model in models.items()}
    budget = budget_for(hybrid, 21)
    table = run(models, budget_flops=budget, ensemble=True)
    assert [(row.model, row.budget) for row in table.rows] == [(name, 0) for name in [*models, "ensemble (logits)"]]
    for row in table.rows:
        assert len(row.seeds) == 2
        for entry in row.seeds:
            assert budget * 0.95 < entry["flops"] <= budget
        low, high = row.interval
        assert low <= row.mean <= high
        assert row.mean == pytest.approx(sum(e["metrics"]["accuracy"] for e in row.seeds) / 2)
    for name, model in models.items():
        assert all(torch.equal(a, b) for a, b in zip(before[name], model.parameters())), name
        assert table.row(name).parameters == count_parameters(model).total
    steps = {row.model: row.seeds[0]["steps"] for row in table.rows}
    assert steps["supernet (soft)"] == 21
    assert steps["supernet (soft)"] <= steps["ensemble (logits)"] < min(steps["gpt"], steps["mamba"])
    assert table.row("hybrid").flops_per_token < table.row("supernet (soft)").flops_per_token
    json.dumps(table.to_dict())


def test_a_dear_step_is_not_off_the_budget(gpt, mamba):
    """Whole steps leave up to one step of a budget over; that is told by the record."""
    budget = budget_for(gpt, 1.8)
    row = run({"gpt": gpt}, budget_flops=budget, seeds=[0]).rows[0]
    (entry,) = row.seeds
    assert entry["flops"] == row.step_flops == flops_per_step(gpt, BATCH, LENGTH)
    assert entry["flops"] < 0.6 * budget


def test_parents_are_scored_as_downloaded_unless_the_task_gives_them_another_head(gpt, hybrid, tmp_path):
    options = {"budget_flops": 6_000_000, "seeds": [0], "ensemble": False, "cpu": True, "test_examples": 5}
    options["learning_rates"] = [1e-3]
    other = copying_task(vocab_size=20)
    table = compare({"gpt": gpt, "hybrid": hybrid}, other, batch_size=BATCH, **options)
    (reason,) = table.untrained
    assert (reason.model, reason.metrics) == ("gpt", {})
    assert "its own vocabulary" in reason.left_out
    kept, options = copying_task(vocab_size=None), options | {"batch_size": BATCH, "out": tmp_path / "kept"}
    table = compare({"gpt": gpt, "hybrid": hybrid}, kept, **options)
    (untrained,) = table.untrained
    assert (untrained.model, untrained.left_out) == ("gpt", "")
    assert untrained.metrics == evaluate(gpt, kept, max_examples=5)
    assert compare({"gpt": gpt, "hybrid": hybrid}, kept, resume=True, **options) == table


def test_names_are_given_in_a_list_too(tmp_path):
    (tmp_path / "lr=0.1").mkdir()
    path = str(tmp_path / "lr=0.1")
    found = named(["a", "first=x/a", "b/a", path, "hub=org/name"])
    assert found == {"a": "a", "first": "x/a", "a-2": "b/a", "lr=0.1": path, "hub": "org/name"}
    # a name that was given is kept wherever it stands, and a path with the sign in a folder's name is a path
    assert named(["x/a", "a=y"]) == {"a-2": "x/a", "a": "y"}
    assert named(["runs/lr=1/model"]) == {"model": "runs/lr=1/model"}
    with pytest.raises(ManticoreError, match="two models are called 'a'"):
        named(["a=x", "a=y"])


def test_a_run_is_what_finetune_gives(gpt):
    table = run({"gpt": gpt}, seeds=[3], learning_rates=[2e-3])
    alone = finetune(gpt, copying_task(), budget_flops=4_000_000, batch_size=BATCH, lr=2e-3, seed=3, cpu=True)
    (entry,) = table.row("gpt").seeds
    assert entry["metrics"] == alone.metrics
    assert (entry["steps"], entry["flops"], entry["lr"]) == (alone.steps, alone.flops, 2e-3)
    assert table.row("gpt").interval is None


def test_the_second_budget_gives_parents_what_the_hybrid_cost_before(gpt, hybrid):
    small = discretize(hybrid, [1, 0])
    alone, before = budget_for(gpt, 10), budget_for(gpt, 20)
    seen: list[str] = []
    table = run(
        {"gpt": gpt, "hybrid": small},
        budget_flops=alone,
        spent_flops={"hybrid": before},
        progress=lambda done, runs, name: seen.append(name),
    )
    assert [(b.name, b.flops) for b in table.budgets] == [
        ("fine-tuning alone", alone),
        ("everything the hybrid cost", alone + before),
    ]
    assert [table.row("gpt", b).seeds[0]["steps"] for b in (0, 1)] == [10, 30]
    first, second = table.row("hybrid", 0), table.row("hybrid", 1)
    assert [e["metrics"] for e in first.seeds] == [e["metrics"] for e in second.seeds]
    assert second.seeds[0]["flops"] == first.seeds[0]["flops"] + before
    # the hybrid's share is the same in both
    assert len(seen) == (2 + 1) * 2


def test_a_budget_below_one_step_is_refused(gpt):
    with pytest.raises(ManticoreError, match="one step costs"):
        run({"gpt": gpt}, budget_flops=1000)


def test_without_a_budget_the_costliest_model_takes_the_default_number_of_steps(monkeypatch):
    monkeypatch.setattr("manticore.experiments.compare.DEFAULT_STEPS", 5)
    table = run(parents(), budget_flops=None, seeds=[0])
    assert table.row("wide").seeds[0]["steps"] == 5
    assert table.row("narrow").seeds[0]["steps"] > 5


def test_each_model_takes_its_best_learning_rate_by_validation(gpt):
    table = run({"gpt": gpt}, learning_rates=[1e-9, 1e-2], budget_flops=budget_for(gpt, 30))
    assert [entry["lr"] for entry in table.row("gpt").seeds] == [1e-2, 1e-2]


def test_a_killed_comparison_repeats_no_finished_run_and_ends_the_same(tmp_path):
    whole = run(parents(), tmp_path / "whole")
    out = tmp_path / "killed"
    code, said = Script(RUN, __file__, str(out), said=tmp_path / "said.txt").end()
    assert code == -signal.SIGKILL, said
    log = out / "units.jsonl"
    done = log.read_text().splitlines()
    assert len(done) == 1 + 3
    log.write_text("\n".join(done) + '\n{"unit": "half a li')
    resumed = run(parents(), out, resume=True)
    assert deterministic(resumed) == deterministic(whole)
    lines = log.read_text().splitlines()
    assert lines[:4] == done
    # both models are scored as given, too
    assert len(lines) == 1 + 4 + 2
    assert not list((out / "units").iterdir())


@pytest.mark.parametrize("rates", [(1e-3,), (1e-3, 3e-3)])
def test_runs_in_processes_give_the_same_table(tmp_path, rates):
    torch.set_num_threads(1)
    models, told = parents(), []
    alone = run(models, learning_rates=rates, spent_flops={"wide": 2_000_000})
    together = run(
        models, tmp_path, learning_rates=rates, spent_flops={"wide": 2_000_000}, workers=3,
        progress=lambda done, runs, name: told.append((done, runs, name)),
    )  # fmt: skip
    assert deterministic(together) == deterministic(alone)
    # narrow trains for two budgets, wide for one of its own and one that is the same
    runs = 3 * (1 + len(rates))
    assert [(done, total) for done, total, _ in told] == [(index, runs) for index in range(runs)]
    assert len({name for *_, name in told}) == runs
    assert len((tmp_path / "units.jsonl").read_text().splitlines()) == 1 + runs + len(models)
    assert not list((tmp_path / "units").iterdir())


def test_results_are_not_mixed_with_those_of_other_settings_or_models(tmp_path):
    models = parents()
    run(models, tmp_path)
    with pytest.raises(ManticoreError, match=r"holds results of an earlier run.*Fix: resume"):
        run(models, tmp_path)
    with pytest.raises(ManticoreError, match=r"started with weight_decay=0.01 \(got 0.5\)"):
        run(models, tmp_path, resume=True, weight_decay=0.5)
    with torch.no_grad():
        models["wide"].transformer.wte.weight[-1, -1] += 1
    with pytest.raises(ManticoreError, match="started with weights of wide="):
        run(models, tmp_path, resume=True)


def test_the_ensemble_averages_its_parents_and_counts_only_them(gpt, mamba):
    sources = {"gpt": gpt, "mamba": mamba}
    add_ensembles(sources, plain_models(sources), copying_task(), ["logits"])
    model = build(sources["ensemble (logits)"], 0)
    tokens = torch.arange(20).reshape(2, 10) % 13
    with torch.no_grad():
        parts = [m.eval()(input_ids=tokens).logits for m in (gpt, mamba)]
        assert torch.allclose(model.eval()(input_ids=tokens).logits, (parts[0] + parts[1]) / 2, atol=1e-5)
    own = sum(p.numel() for p in model.mixing.mixture_parameters())
    assert count_parameters(model).total - own == sum(count_parameters(m).total for m in (gpt, mamba))


def test_an_ensemble_needs_two_models_that_are_no_hybrids(gpt, hybrid):
    sources = {"gpt": gpt, "hybrid": hybrid}
    add_ensembles(sources, plain_models(sources), copying_task(), ["logits"])
    assert list(sources) == ["gpt", "hybrid"]


def test_a_task_with_its_own_vocabulary(gpt, mamba):
    own = copying_task(vocab_size=20)
    hybrid = combine([gpt, mamba], num_blocks=2, vocab_size=20)
    options = {"budget_flops": 12_000_000, "seeds": [0], "learning_rates": [1e-3], "batch_size": BATCH}
    table = compare([gpt, mamba, hybrid], own, **options)
    assert [row.model for row in table.rows] == ["gpt_neo", "mamba", "manticore", "ensemble (logits)"]
    assert gpt.config.vocab_size == 13


def test_models_from_folders_and_from_functions_of_the_seed(gpt, tmp_path):
    gpt.save_pretrained(tmp_path / "saved")
    seeds: list[int] = []

    def made(seed: int):
        seeds.append(seed)
        return parents()["wide"]

    table = run([tmp_path / "saved", str(tmp_path / "saved"), made], ensemble=True, budget_flops=9_000_000)
    assert [row.model for row in table.rows] == ["saved", "saved-2", "made", "ensemble (logits)"]
    assert table.rows[0].seeds[0]["metrics"] == table.rows[1].seeds[0]["metrics"]
    assert seeds == [0, 1]


def test_models_without_names_get_different_ones(gpt):
    assert list(named([gpt, gpt, Path("a/gpt_neo"), "b/other"])) == ["gpt_neo", "gpt_neo-2", "gpt_neo-3", "other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": {}}, "compare: no models"),
        ({"seeds": []}, r"seeds is \[\] .expected whole numbers, one or more.*Fix: for instance 0, 1 and 2"),
        (
            {"learning_rates": []},
            r"learning_rates is \[\] .expected positive numbers, one or more.*Fix: for instance 1e-3",
        ),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\] holds one twice. Fix: give different ones"),
        ({"spent_flops": {"hybird": 5}}, r"spent_flops names 'hybird' \(the models are gpt\)"),
    ],
)
def test_impossible_comparisons_are_refused(gpt, options, message):
    with pytest.raises(ManticoreError, match=message):
        run(options.pop("models", {"gpt": gpt}), **options)


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157), (30, 2.042272)],
)
def test_quantiles_of_students_distribution(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, abs=1e-6)


def test_the_interval_of_three_runs():
    mean, (low, high) = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    # 4.302653 * 1 / sqrt(3)
    assert (high - mean, mean - low) == pytest.approx((2.484138, 2.484138), abs=1e-6)
    assert mean_interval([5.0]) == (5.0, None)
