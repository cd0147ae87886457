"""Workers that share a study of designs, one of them killed, come to what one worker alone comes to."""

from __future__ import annotations

import json
import signal
import sys

import optuna
import pytest
from tiny_designs import recipe, untimed
from workers import Worker

linux = pytest.mark.skipif(sys.platform != "linux", reason="pgserver has no wheels elsewhere")


def found(out):
    """The record of a study, without what a clock has measured."""
    return untimed(json.loads((out / "study.json").read_text()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe, and what one worker alone finds."""
    folder = tmp_path_factory.mktemp("place")
    recipe(folder)
    code, said = Worker(["design", "tiny.yaml", "-o", "alone", "--cpu"], folder).end()
    assert code == 0, said
    return folder


@linux
def test_two_workers_on_postgresql_one_of_them_killed_find_what_one_alone_finds(place, tmp_path):
    pgserver = pytest.importorskip("pgserver", reason="PostgreSQL for tests comes with the extra dev")
    pytest.importorskip("psycopg", reason="its driver comes with the extra postgres")
    server = pgserver.get_server(tmp_path / "server")
    try:
        # a recipe takes no password, not even an empty one
        url = server.get_uri().replace("postgres:@", "postgres@")
        words = ["design", "tiny.yaml", f"design.storage={url}", "design.study_name=both", "-o", "both", "--cpu"]
        # in its first design, for the other may take all later ones; as if on another machine, where its silence alone
        # tells
        killed = Worker(words, place, end=(2, signal.SIGKILL), host="elsewhere")
        other = Worker(words, place)
        assert killed.end()[0] == -signal.SIGKILL
        code, said = other.end()
        assert code == 0, said
        assert found(place / "both") == found(place / "alone")
        study = optuna.load_study(study_name="both", storage=url.replace("postgresql:", "postgresql+psycopg:"))
        # a worker that a busy machine silences for two seconds is taken for dead too
        lost = {trial.user_attrs["request"] for trial in study.trials if trial.state.name == "FAIL"}
        done = {trial.user_attrs["request"] for trial in study.trials if trial.state.name == "COMPLETE"}
        assert lost
        assert lost <= done
        assert len(done) == 6
    finally:
        server.cleanup()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_resumes_to_the_same_front(place, number):
    out = f"stopped-{number.name}"
    words = ["design", "tiny.yaml", "-o", out, "--cpu"]
    code, said = Worker(words, place, end=(8, number)).end()
    assert code == (-number if number == signal.SIGKILL else 128 + number), said
    if number == signal.SIGINT:
        assert f"next: {' '.join(['manticore', *words, '--resume'])}" in said
    code, said = Worker([*words, "--resume"], place).end()
    assert code == 0, said
    assert found(place / out) == found(place / "alone")
    assert (place / out / "report.html").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="processes that end with their caller are Linux's")
def test_workers_of_one_command_find_the_same(place):
    code, said = Worker(["design", "tiny.yaml", "design.workers=2", "-o", "forked", "--cpu"], place).end()
    assert code == 0, said
    assert found(place / "forked") == found(place / "alone")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["design", "tiny.yaml", "design.trials=0"], "design.trials"),
        (["design", "tiny.yaml", "design.objectives=[los]"], "Did you mean 'loss'?"),
        (["design", "tiny.yaml", "design.space_options.layers=0"], "layers: wrong value (got 0"),
        (["design", "tiny.yaml", "design.space_options.depth=2"], "unknown option of space 'layers'"),
        (["design", "tiny.yaml", "design.method=random", "design.method_options={}", "design.trials=9"], "designs"),
        (["design", "tiny.yaml", "-o", "alone"], "exists already"),
        (["design", "tiny.yaml", "-o", "alone", "--resume", "--cpu", "seed=1"], "was started with"),
        (["design", "quickstart"], "Fix: manticore run quickstart"),
        (["run", "tiny.yaml"], "Fix: manticore design tiny.yaml"),
    ],
)
def test_bad_input_ends_with_a_line_and_code_2(place, words, said):
    out = [] if "-o" in words or words[0] == "run" else ["-o", "never"]
    code, printed = Worker([*words, *out], place).end()
    assert code == 2, printed
    errors = [line for line in printed.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in printed
    assert not (place / "never" / "study.json").exists()
