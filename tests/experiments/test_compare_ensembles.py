"""Ensembles of a comparison: one row per output, on text scored before any training too."""

import math

import pytest
from copying_task import copying_task
from test_compare import parents, run

from manticore.errors import ManticoreError
from manticore.experiments.compare import compare
from manticore.experiments.models import add_ensembles, build, plain_models, reads_text
from manticore.experiments.rows import ensemble_row, ensembles, is_ensemble, is_made
from manticore.settings import Compare
from manticore.stages.compare import _ensembles
from manticore.tasks.text import packed_task


def test_on_text_they_are_scored_before_any_training_within_the_bound_of_bayes(checkpoints, tokenizer):
    documents = {name: [f"def {name}(x): return {n}" for n in range(40)] for name in ("train", "validation", "test")}
    task = packed_task(documents, tokenizer, 12)
    models = dict(zip(("gpt", "mamba"), map(str, checkpoints)))
    options = {"budgets": [0], "budget_flops": 1e9, "seeds": [0], "test_examples": 6}
    table = compare(models, task, batch_size=4, cpu=True, **options)
    names = ["gpt", "mamba", "ensemble (probabilities)", "ensemble (bayes)"]
    assert [row.model for row in table.rows] == names
    untrained = {entry.model: entry.metrics for entry in table.untrained}
    assert list(untrained) == names
    for name in names:
        assert table.row(name, 0).seeds[0]["metrics"] == untrained[name]
    best = min(untrained[name]["loss"] for name in ("gpt", "mamba"))
    assert untrained["ensemble (bayes)"]["loss"] <= best + math.log(2) / 12 + 1e-5


def test_each_output_is_a_row_and_its_model(gpt, mamba):
    sources = {"gpt": gpt, "mamba": mamba}
    outputs = ["logits", "probabilities", "bayes", "gate"]
    assert add_ensembles(sources, plain_models(sources), copying_task(), outputs) == [
        ensemble_row(output) for output in outputs
    ]
    for output in outputs:
        config = build(sources[ensemble_row(output)], 0).config
        assert (config.output, config.mixing, config.num_blocks) == (output, "routed", 1)


def test_by_default_they_are_those_that_need_no_training():
    assert ensembles(True, of_text=True) == ("probabilities", "bayes")
    assert ensembles(True, of_text=False) == ("logits",)
    assert ensembles(False, of_text=True) == ()
    assert ensembles(["gate"], of_text=True) == ["gate"]
    # targets need not be the next token, though the vocabulary stays
    assert not reads_text(copying_task(vocab_size=None))


@pytest.mark.parametrize(
    ("given", "kept"),
    [(True, True), (False, False), ("bayes", ["bayes"]), (["logits", "gate"], ["logits", "gate"]), ([False], False)],
)
def test_one_option_takes_a_truth_value_a_name_or_a_list(given, kept):
    assert Compare(ensemble=given).ensemble == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("bays", "unknown output 'bays'. Did you mean 'bayes'"),
        (["bayes", "bayes"], "ensemble: .* holds one twice"),
        (3, "compare: ensemble: 3 is no name of an output. Fix: for instance bayes, or true or false"),
    ],
)
def test_other_ensembles_are_refused_in_one_line(given, message):
    with pytest.raises(ManticoreError, match=message) as refused:
        Compare(ensemble=given)
    assert "\n" not in str(refused.value)


def test_rows_are_told_apart_old_ones_too():
    assert all(map(is_ensemble, ("ensemble", "ensemble (bayes)")))
    assert not is_ensemble("ensembles")
    assert all(map(is_made, ("ensemble (gate)", "supernet (soft)", "hybrid")))
    assert not is_made("larger: gpt")


def test_weights_by_likelihood_are_refused_where_targets_are_not_the_next_token():
    with pytest.raises(ManticoreError, match="are not the next tokens of its examples"):
        run(parents(), ensemble="bayes", seeds=[0])


class Recipe:
    """What a comparison asks of a recipe."""

    def __init__(self, ensemble, output, discretize=None):
        self.compare = Compare(ensemble=ensemble)
        self.combine = type("", (), {"mixing": "routed", "output": output})
        self.discretize = discretize


def test_the_ensemble_that_the_hybrid_is_itself_is_left_out_unless_it_is_named():
    assert _ensembles(Recipe(True, "bayes"), of_text=True) == ["probabilities"]
    assert _ensembles(Recipe(["bayes"], "bayes"), of_text=True) == ["bayes"]
    assert _ensembles(Recipe(True, "bayes", discretize={}), of_text=True) == ["probabilities", "bayes"]
    assert _ensembles(Recipe(False, "bayes"), of_text=True) == []
