"""Several workers on one study, stopped and killed ones, come to what one worker alone comes to."""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from tiny_search import VOCABULARY, make_hybrid, recall
from workers import Worker, end_at, soon

from manticore.search import storage, study
from manticore.search.search import search
from manticore.training.budget import COUNTED
from manticore.training.trainer import TaskTrainer

QUICK = {"method": "halving", "batch_size": 16, "finetune_flops": 150_000_000}
TASK = {"vocab_size": VOCABULARY, "seq_len": 12, "num_train_examples": 64, "num_validation_examples": 8}

linux = pytest.mark.skipif(sys.platform != "linux", reason="pgserver has no wheels elsewhere")


def words(folder: Path, out: str, *more: str) -> list[str]:
    """The command that every worker runs."""
    task = [word for name, value in TASK.items() for word in ("--task-option", f"{name}={value}")]
    options = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    hybrid = str(folder / "hybrid")
    return ["search", hybrid, "--task", "mad/in-context-recall", *task, *options, "-o", str(folder / out), *more]


def found(out: Path) -> dict:
    """What a search has found, without what a clock has measured."""
    return untimed(json.loads((out / "search.json").read_text()))


def untimed(value: Any) -> Any:
    """A record without what a clock has measured."""
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if name != "seconds"}
    return [untimed(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A hybrid, and what one worker alone finds."""
    folder = tmp_path_factory.mktemp("place")
    make_hybrid(dropout=0.1).save_pretrained(folder / "hybrid")
    code, said = Worker(words(folder, "alone"), folder).end()
    assert code == 0, said
    return folder


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=linux)])
def database(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'trials.db'}"
        return
    pgserver = pytest.importorskip("pgserver", reason="PostgreSQL for tests comes with the extra dev")
    pytest.importorskip("psycopg", reason="its driver comes with the extra postgres")
    server = pgserver.get_server(tmp_path / "server")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def test_two_workers_one_of_them_killed_find_what_one_alone_finds(place, database):
    out = f"two-{database.partition(':')[0]}"
    command = words(place, out, "--storage", database, "--study-name", "both")
    # the one on another machine can be known by its silence only
    host = "elsewhere" if database.startswith("postgresql") else None
    first = Worker(command, place, end=(2, signal.SIGKILL), host=host)
    second = Worker(command, place)
    assert first.end()[0] == -signal.SIGKILL
    code, said = second.end()
    assert code == 0, said
    assert found(place / out) == found(place / "alone")
    assert (place / out / "model.safetensors").read_bytes() == (place / "alone" / "model.safetensors").read_bytes()

    trials = optuna.load_study(study_name="both", storage=database.replace("postgresql:", "postgresql+psycopg:")).trials
    (killed,) = (t for t in trials if t.state.name == "FAIL")
    done = {t.user_attrs["request"]: t for t in trials if t.state.name == "COMPLETE"}
    assert done[killed.user_attrs["request"]].number > killed.number
    assert len(done) == sum(t.state.name == "COMPLETE" for t in trials) == 6

    # whoever comes late finds the same, trains nothing, and changes nothing
    late, said = Worker(command, place, end=(1, signal.SIGKILL)).end()
    assert late == 0, said
    assert found(place / out) == found(place / "alone")
    left = {entry.name for entry in (place / out).iterdir()}
    assert left == {entry.name for entry in (place / "alone").iterdir()} | {".lock"}
    kept = [entry.name for entry in (place / out / "search" / "candidates").iterdir()]
    assert kept == ["-".join(map(str, found(place / out)["path"]))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_search_resumes_to_the_same_numbers(place, number):
    out = f"stopped-{number.name}"
    code, said = Worker(words(place, out), place, end=(4, number)).end()
    assert code == (-number if number == signal.SIGKILL else 128 + number), said
    code, said = Worker(words(place, out, "--resume"), place).end()
    assert code == 0, said
    assert found(place / out) == found(place / "alone")


@pytest.fixture
def short(monkeypatch):
    """Workers of this process look at each other often; what ends them goes with the test."""
    for module, name in ((storage, "HEARTBEAT"), (storage, "GRACE"), (study, "LOOK")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(TaskTrainer, "training_step", TaskTrainer.training_step)
    soon()


@pytest.mark.skipif(sys.platform != "linux", reason="processes that end with their caller are Linux's")
def test_workers_of_one_command_and_a_killed_one(short, tmp_path):
    COUNTED.clear()
    alone = search(make_hybrid(), recall(), **QUICK, cpu=True)
    counted = set(COUNTED)
    COUNTED.clear()
    end_at(2, signal.SIGKILL, once=tmp_path / "killed")
    told = []
    both = search(
        make_hybrid(), recall(), **QUICK, cpu=True, workers=2, out=tmp_path / "out", progress=lambda *a: told.append(a)
    )
    assert (tmp_path / "killed").exists()
    assert both.path == alone.path
    assert both.flops == alone.flops
    assert untimed(both.to_dict()) == untimed(alone.to_dict())
    ours, theirs = both.model.state_dict(), alone.model.state_dict()
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert len(told) == 6
    # what a worker counts is known to those that come after it
    assert counted == set(COUNTED)


@pytest.mark.skipif(sys.platform != "linux", reason="processes that end with their caller are Linux's")
def test_a_candidate_that_kills_its_workers_is_given_up(short, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "RETRIES", 1)
    end_at(1, signal.SIGKILL, path=[0, 1])
    result = search(make_hybrid(), recall(), **QUICK, cpu=True, workers=2, out=tmp_path)
    lost = next(each for each in result.candidates if each.path == [0, 1])
    assert lost.failed == "its worker died 2 times, which often means that memory ran out"
    assert result.path != [0, 1]
    trials = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study.db'}").trials
    assert sum(t.params.get("block 0") == 0 and t.params.get("block 1") == 1 for t in trials) == 2


def test_a_candidate_that_diverges_is_a_failed_trial_with_its_reason(tmp_path):
    hybrid = make_hybrid()
    with torch.no_grad():
        dict(hybrid.mixing.projectors.named_parameters())["1_1_0.weight"].fill_(math.nan)
    search(hybrid, recall(), **QUICK, cpu=True, out=tmp_path)
    trials = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study.db'}").trials
    failed = [t for t in trials if t.state.name == "FAIL"]
    assert [(t.params["block 0"], t.params["block 1"]) for t in failed] == [(1, 0)]
    assert "diverged" in failed[0].user_attrs["failed"]
