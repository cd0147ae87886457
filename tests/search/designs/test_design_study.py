"""A study of designs from end to end: what it finds, writes and refuses, and how it goes on after a stop."""

from __future__ import annotations

import json

import optuna
import pytest
from tiny_designs import QUICK, SPACE, untimed, written_text

import manticore
from manticore.errors import ManticoreError
from manticore.runs.ledger import read_record
from manticore.search.designs import training
from manticore.search.designs.layer_lists import LayerListSpace
from manticore.search.designs.study import baselines, most_losses
from manticore.stacks.configuration import StackConfig


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(written_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    """A finished study, its folder, and what it told."""
    out, told = tmp_path_factory.mktemp("done") / "study", []
    result = manticore.design(
        LayerListSpace(**SPACE),
        ["loss", "maximise parameters"],
        **{k: v for k, v in QUICK.items() if k not in ("space", "space_options", "baselines")},
        text=text,
        out=out,
        cpu=True,
        progress=lambda *row: told.append(row),
    )
    return result, out, told


def test_a_study_ends_with_a_front_of_designs_that_load(done):
    result, out, told = done
    assert len(result.trials) == 6 == told[-1][0]
    assert all("best loss" in row for *_, row in told)
    for trial in result.front:
        loaded = StackConfig.from_pretrained(out / "designs" / trial.name)
        assert loaded.layers == trial.config.layers
        better = [t for t in result.trials if t.measures["loss"] <= trial.measures["loss"]]
        assert all(t.measures["parameters"] <= trial.measures["parameters"] for t in better)
    assert result.best.measures["loss"] == min(t.measures["loss"] for t in result.trials)
    names = [each.name for each in result.baselines]
    # of three layers, the sandwich is Transformer++
    assert names == ["transformer++", "striped-mamba", "mambaformer"]
    assert all(each.failed is None and each.config.num_hidden_layers == 3 for each in result.baselines)


def test_the_record_holds_everything(done):
    result, out, _ = done
    record = read_record(out / "study.json", "")
    assert record == json.loads(json.dumps(result.record))
    assert record["objectives"] == [
        {"measure": "loss", "maximise": False},
        {"measure": "parameters", "maximise": True},
    ]
    assert [trial["generation"] for trial in record["trials"]][:4] == [0] * 4
    assert {name for batch in record["generations"] for name in batch} == {t["design"] for t in record["trials"]}
    assert all(len(row["repeats"]) == 1 and not row["taken_over"] for row in record["trials"])
    measures = {"loss", "bits_per_byte", "parameters", "flops", "cache_bytes", "state_bytes"}
    assert all(trial["measures"].keys() == measures for trial in [*record["trials"], *record["baselines"]])
    assert record["flops"] == sum(each["flops"] for each in [*record["trials"], *record["baselines"]])
    assert record["unfinished"] is False


def test_trials_in_the_storage_are_designs_with_their_values(done):
    result, out, _ = done
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{out / 'study.db'}")
    assert study.metric_names == ["loss", "parameters"]
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    rows = {trial.user_attrs["design"]: trial for trial in study.trials if "design" in trial.user_attrs}
    assert rows.keys() == {trial.name for trial in result.trials}
    for trial in result.trials:
        assert rows[trial.name].values == [trial.measures["loss"], trial.measures["parameters"]]
        letters = dict(zip(("layer 01", "layer 02", "layer 03"), trial.name))
        assert rows[trial.name].params == letters
        assert all(rows[trial.name].user_attrs[name] == value for name, value in trial.measures.items())
    # what a dashboard makes its tables and figures of
    frame = study.trials_dataframe()
    assert {"values_loss", "values_parameters", "params_layer 01", "user_attrs_loss", "state"} <= set(frame.columns)
    best = {trial.user_attrs.get("design") for trial in study.best_trials} - {None}
    assert best <= {trial.name for trial in result.front}
    assert best
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_a_study_that_broke_off_resumes_to_the_same_record(done, text, tmp_path, monkeypatch):
    trained = training.DesignTraining.of_config
    made = []

    def breaks_off(self, *arguments, **named):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return trained(self, *arguments, **named)

    given = {
        **QUICK,
        "text": text,
        "out": tmp_path / "study",
        "cpu": True,
        "objectives": ["loss", "maximise parameters"],
    }
    given["baselines"] = True
    monkeypatch.setattr(training.DesignTraining, "of_config", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        manticore.design(**given)
    monkeypatch.setattr(training.DesignTraining, "of_config", trained)
    with pytest.raises(ManticoreError, match="holds results of an earlier design"):
        manticore.design(**given)
    again = manticore.design(**given, resume=True)
    assert untimed(again.record) == untimed(done[0].record)
    with pytest.raises(ManticoreError, match="was started with steps=3"):
        manticore.design(**{**given, "steps": 4}, resume=True)


def test_a_failed_design_is_marked_and_the_study_goes_on(text, monkeypatch):
    trained = training.DesignTraining.of

    def of(self, space, design, **named):
        if design == (0, 0, 0):
            raise training.Failed("out of memory")
        return trained(self, space, design, **named)

    monkeypatch.setattr(training.DesignTraining, "of", of)
    given = {**QUICK, "method": "exhaustive", "method_options": {}, "trials": 8, "steps": 1}
    result = manticore.design(**given, text=text, cpu=True)
    assert len(result.trials) == 8
    assert [trial.name for trial in result.trials if trial.failed] == ["AAA"]
    assert result.record["trials"][0]["failed"] == "out of memory"
    assert "AAA" not in [trial.name for trial in result.front]


@pytest.mark.parametrize(("depth", "stacks"), [(1, 2), (3, 3), (4, 4), (6, 4)])
def test_hand_made_stacks_are_distinct(depth, stacks):
    made = baselines(StackConfig(layers=["mlp"] * depth, hidden_size=8))
    layers = [make(vocab_size=4, positions=4).layers for make in made.values()]
    assert len(layers) == stacks
    assert all(each not in layers[:index] and len(each) == depth for index, each in enumerate(layers))


def test_poor_designs_are_stopped_by_what_finished_batches_say():
    curves = [[[1, loss], [2, loss - 1], [3, loss - 2]] for loss in (4.0, 5.0, 6.0)]
    assert most_losses(curves, "median", 3) == {1: 5.0, 2: 4.0}
    assert most_losses(curves, "median", 4) == {}
    assert most_losses(curves, None, 1) == {}
    # stopped curves are shorter, and no standard
    assert most_losses([*curves, [[1, 0.0]]], "asha", 3) == {2: 3.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"space": "layer"}, "unknown space 'layer'. Did you mean 'layers'?"),
        ({"space_options": {"layers": 3}}, "space 'layers' needs primitives"),
        ({"space_options": {**SPACE, "depth": 3}}, "space 'layers' has no option 'depth'"),
        ({"space_options": {**SPACE, "layers": 0}}, "layers is 0"),
        ({"space_options": {**SPACE, "primitives": ["atention"]}}, "Did you mean 'attention'"),
        ({"method": "evolve"}, "unknown design method 'evolve'"),
        ({"method_options": {"size": 3}}, "method 'evolution' has no option 'size'"),
        ({"method": "random", "method_options": {}, "trials": 9}, "designs"),
        ({"storage": "sqlite:///x.db"}, "a storage needs an out"),
        ({"text": "no/such/file.txt"}, "no such file"),
    ],
)
def test_what_no_study_can_be_made_of_is_refused_in_a_line(options, said, text):
    with pytest.raises(ManticoreError, match=said) as refused:
        manticore.design(**{**QUICK, "text": text, **options}, cpu=True)
    assert "\n" not in str(refused.value)
