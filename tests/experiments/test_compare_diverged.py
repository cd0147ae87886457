"""A learning rate that diverges: named, and no end of a comparison that has another one."""

import json

import pytest
from test_compare import parents, run

from manticore.errors import NotFiniteError

TOO_HIGH = 1e30


def test_a_rate_that_diverges_counts_as_the_worst_and_is_named(tmp_path, caplog):
    models = parents()
    table = run(models, tmp_path, learning_rates=[TOO_HIGH, 1e-3])
    for row in table.rows:
        assert [entry["lr"] for entry in row.seeds] == [1e-3, 1e-3]
        assert row.diverged == [TOO_HIGH]
    assert "narrow diverged with lr 1e+30 and seed 0" in caplog.text
    alone = run(models, learning_rates=[1e-3])
    assert [row.mean for row in table.rows] == [row.mean for row in alone.rows]
    assert [row.diverged for row in alone.rows] == [[], []]
    json.dumps(table.to_dict(), allow_nan=False)
    # found again, not trained again
    again = run(models, tmp_path, learning_rates=[TOO_HIGH, 1e-3], resume=True)
    assert again.to_dict() == table.to_dict()
    assert not list((tmp_path / "units").iterdir())


def test_a_rate_that_diverges_with_a_later_seed_gives_way_to_the_next_best(monkeypatch):
    rates = [1e-3, 1e-4]

    def diverging(model, task, settings, *, seed, **options):
        from manticore.training.finetune import finetune

        # the better rate of the two, with its second seed
        lr = TOO_HIGH if (settings.lr, seed) == (best, 1) else settings.lr
        return finetune(model, task, settings.model_copy(update={"lr": lr}), seed=seed, **options)

    models = {"narrow": parents()["narrow"]}
    best = run(models, learning_rates=rates, seeds=[0]).row("narrow").seeds[0]["lr"]
    monkeypatch.setattr("manticore.experiments.comparison_runs.finetune", diverging)
    row = run(models, learning_rates=rates).row("narrow")
    other = next(lr for lr in rates if lr != best)
    assert [entry["lr"] for entry in row.seeds] == [other, other]
    assert row.diverged == [best]


def test_an_only_rate_that_diverges_is_named_with_its_model():
    with pytest.raises(NotFiniteError, match=r"^compare: narrow, lr 1e\+30, seed 0: finetune: .* Fix: lower lr"):
        run(parents(), learning_rates=[TOO_HIGH])


def test_where_every_rate_diverges_all_of_them_are_named():
    with pytest.raises(NotFiniteError, match=r"narrow diverged with every learning rate \(1e\+30, 1e\+31\)"):
        run(parents(), learning_rates=[TOO_HIGH, 10 * TOO_HIGH], seeds=[0])
