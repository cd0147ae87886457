"""Trials that another study has trained serve other objectives, to the same record as training everything anew."""

from __future__ import annotations

import json

import pytest
from tiny_designs import QUICK, recipe, untimed, written_text
from workers import Worker

import manticore
from manticore.errors import ManticoreError
from manticore.report.design_record import read_study
from manticore.report.design_verdict import verdict
from manticore.search.designs import training

FIRST = {**QUICK, "method": "random", "method_options": {}, "objectives": ["loss"], "baselines": True}
SECOND = {**QUICK, "objectives": ["parameters", "loss", "peak_bytes"], "workload": "tokens=48", "baselines": True}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(written_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def first(text, tmp_path_factory):
    """The folder of a study by the loss alone, and the study."""
    out = tmp_path_factory.mktemp("first") / "study"
    return out, manticore.design(**FIRST, text=text, out=out, cpu=True)


def scores(record):
    """A record without what says who has trained what, and when."""
    record = untimed(record)
    told = {"flops", "flops_taken_over", "taken_over", "folder"}
    parts = {
        name: [{k: v for k, v in r.items() if k not in told} for r in record[name]] for name in ("trials", "baselines")
    }
    return {**{name: value for name, value in record.items() if name not in told}, **parts}


@pytest.fixture
def trained(monkeypatch):
    """The names of what is trained from here on."""
    on_text, names = training.DesignTraining._on_text, []

    def counted(self, make, name, *arguments):
        names.append(name)
        return on_text(self, make, name, *arguments)

    monkeypatch.setattr(training.DesignTraining, "_on_text", counted)
    return names


def test_another_study_by_other_objectives_ends_as_if_it_had_trained_everything(first, text, trained, tmp_path):
    out, done = first
    alone = manticore.design(**SECOND, text=text, cpu=True)
    assert len(trained) == 6 + 3
    trained.clear()
    again = manticore.design(**SECOND, text=text, cpu=True, reuse=out, out=tmp_path / "again")
    known = {trial.name for trial in done.trials}
    assert known & {trial.name for trial in again.trials}
    assert sorted(trained) == sorted(trial.name for trial in again.trials if trial.name not in known)
    assert scores(again.record) == scores(alone.record)
    assert [trial.name for trial in again.front] == [trial.name for trial in alone.front]
    # what was spent, here and there
    everything = [*again.record["trials"], *again.record["baselines"]]
    taken = sum(row["flops"] for row in everything if row["taken_over"])
    assert again.record["flops_taken_over"] == taken == alone.flops - again.flops
    assert [row["taken_over"] for row in everything[:6]] == [row["design"] in known for row in everything[:6]]
    assert "of which another study had spent" in verdict(read_study(tmp_path / "again")).sentence
    # a study in memory serves as well, and one that has taken over everything trains nothing
    trained.clear()
    last = manticore.design(**{**SECOND, "objectives": ["loss", "peak_bytes"]}, text=text, cpu=True, reuse=alone)
    assert trained == [trial.name for trial in last.trials if trial.trained and not trial.trained.taken_over]


def test_timed_measures_are_those_of_this_machine_for_the_design_alone(first, text, trained):
    out, _ = first
    found = manticore.design(**{**FIRST, "objectives": ["loss", "decode_ms"]}, text=text, cpu=True, reuse=out)
    assert trained == []
    assert all(trial.measures["decode_ms"] > 0 for trial in [*found.trials, *found.baselines])


@pytest.mark.parametrize("stop", [None, "median"])
def test_what_would_be_stopped_elsewhere_is_trained_anew(text, trained, stop):
    given = {**FIRST, "trials": 8, "method_options": {"batch": 4}, "stop_after": 2, "steps": 8}
    given |= {"text": text, "cpu": True, "baselines": False}
    other = manticore.design(**given, stop=None if stop else "median")
    alone = manticore.design(**given, stop=stop)
    assert any(trial["stopped"] for trial in (alone if stop else other).record["trials"])
    trained.clear()
    again = manticore.design(**given, stop=stop, reuse=other)
    assert scores(again.record) == scores(alone.record)
    # the same point of the same curve ends both
    stopped = alone if stop else other
    assert trained == [trial.name for trial in stopped.trials if trial.trained.stopped is not None]
    trained.clear()
    assert scores(manticore.design(**given, stop=stop, reuse=alone).record) == scores(alone.record)
    assert trained == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 4}, "trained with steps=3 (got 4)"),
        ({"seed": 1}, "trained with seed=0 (got 1)"),
        ({"repeats": 2}, "trained with repeats=1 (got 2)"),
        ({"space_options": {**QUICK["space_options"], "width": 16}}, "trained with space="),
        ({"text": "other"}, "trained with another data (got sha256"),
        ({"reuse": "nowhere"}, "no such file"),
        ({"reuse": 3}, "older version"),
    ],
)
def test_what_was_trained_otherwise_is_refused_in_a_line(first, text, tmp_path, changes, said):
    if changes.get("text") == "other":
        (tmp_path / "other").write_text("another text, of other words.\n" * 200)
        changes = {"text": str(tmp_path / "other")}
    with pytest.raises(ManticoreError) as refused:
        manticore.design(**{**FIRST, "text": text, "reuse": first[0], **changes}, cpu=True)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("design: reuse: ")


def test_a_changed_record_is_not_believed(first, text, tmp_path):
    record = json.loads((first[0] / "study.json").read_text())
    record["trials"][0]["repeats"][0]["loss"] /= 2
    (tmp_path / "study.json").write_text(json.dumps(record))
    with pytest.raises(ManticoreError, match="its content is not what was written"):
        manticore.design(**FIRST, text=text, reuse=tmp_path, cpu=True)


def test_the_verb_takes_over_too(first, tmp_path):
    recipe(tmp_path, **{**FIRST, "objectives": ["loss", "parameters"]})
    code, said = Worker(["design", "tiny.yaml", "-o", "second", "--cpu", "--reuse", str(first[0])], tmp_path).end()
    assert code == 0, said
    record = json.loads((tmp_path / "second" / "study.json").read_text())
    assert record["flops"] == 0
    assert all(trial["taken_over"] for trial in record["trials"])
    assert "of these by another study" in (tmp_path / "second" / "report.html").read_text()
