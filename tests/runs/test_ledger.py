"""Records, logs of runs and finished stages: what was damaged or changed is never believed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manticore.runs.ledger as ledger
from manticore.errors import ManticoreError
from manticore.runs.ledger import Digests, RunLog, read_record, write_record
from manticore.runs.reporter import LogReporter
from manticore.runs.stages import STATE, GuardedStage, Outcome, run_stages

SETTINGS = {"lr": 1e-3, "steps": [1, 2]}
INPUTS = {"weights of a": "1" * 64, "data": "2" * 64}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three finished runs."""
    path = tmp_path / "units.jsonl"
    runs = RunLog(path, SETTINGS, INPUTS, resume=False, stage="compare")
    for number in range(3):
        runs.add(f"run {number}", {"loss": number / 3, "bits": [1, None, float("inf")]})
    return path


def again(path: Path, settings: Any = SETTINGS, inputs: Any = INPUTS, *, resume: bool = True) -> list[str]:
    """The runs that are believed."""
    runs = RunLog(path, settings, inputs, resume=resume, stage="compare")
    return [name for name in ("run 0", "run 1", "run 2") if runs.get(name) is not None]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def test_what_is_read_back_is_what_was_added(log: Path) -> None:
    before = log.read_text()
    assert again(log) == ["run 0", "run 1", "run 2"]
    assert log.read_text() == before


@pytest.mark.parametrize("length", [1, 20, 80, -1], ids=lambda length: f"{length} characters")
def test_a_line_that_was_cut_off_is_made_again(log: Path, length: int) -> None:
    *kept, last = lines(log)
    log.write_text("".join(kept) + last[:length])
    assert again(log) == ["run 0", "run 1"]
    assert len(lines(log)) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace("0.33", "0.34"),
        lambda line: line.replace("run 1", "run 2"),
        lambda line: line.replace("null", "1234"),
        lambda line: "\x00" * (len(line) - 1) + "\n",
        lambda line: line[: len(line) // 2] + "\n",
        lambda line: line.replace("{", "[", 1),
        lambda line: "\n",
        lambda line: "[" * 10**5 + "\n",
    ],
)
def test_a_damaged_line_is_dropped_and_said(
    log: Path, change: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    found = lines(log)
    found[2] = change(found[2])
    log.write_text("".join(found))
    with caplog.at_level(logging.WARNING):
        assert again(log) == ["run 0", "run 2"]
    assert "line 3 of" in caplog.text
    assert "is damaged; its run is made again" in caplog.text


@pytest.mark.parametrize("head", ["", "{}\n", "[]\n", '{"settings": 5}\n', "\x00\n", "x\n", '{"unit": "a"}\n'])
def test_a_log_without_its_head_is_one_line(log: Path, head: str) -> None:
    log.write_text(head + "".join(lines(log)[1:]))
    with pytest.raises(ManticoreError, match=r"units\.jsonl: cannot be read .*Fix: choose another out") as caught:
        again(log)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": SETTINGS | {"lr": 2e-3}}, r"was started with lr=0\.001 \(got 0\.002\)"),
        ({"settings": SETTINGS | {"new": 1}}, r"was started with new=None \(got 1\)"),
        (
            {"inputs": INPUTS | {"weights of a": "3" * 64}},
            r"is of another model: it was started with weights of a=1111",
        ),
        ({"inputs": INPUTS | {"data": "3" * 64}}, r"is of other data: it was started with data=2222"),
        ({"resume": False}, "holds results of an earlier run"),
    ],
)
def test_another_key_is_refused(log: Path, changed: dict[str, Any], said: str) -> None:
    before = log.read_bytes()
    with pytest.raises(ManticoreError, match=said):
        again(log, **changed)
    assert log.read_bytes() == before


def test_other_conditions_are_said(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    head, *rest = lines(log)
    record = json.loads(head)
    record.pop("sha256")
    record["conditions"] = {"threads": 96, "scan": "reference"}
    log.write_text(json.dumps(record) + "\n" + "".join(rest))
    with caplog.at_level(logging.WARNING):
        assert len(again(log)) == 3
    assert "was started with threads 96, now " in caplog.text
    assert "scan reference, now " in caplog.text


def test_a_log_of_the_version_before_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "units.jsonl"
    settings = SETTINGS | {"data": "abc", "data of b": "def", "weights of a": "123"}
    old = [{"settings": settings}, {"unit": "run 0", "result": {"loss": 1}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert again(path) == ["run 0"]


def test_a_record_that_was_changed_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_record(file, {"a": 1, "b": [1.5, None, {"3": "x"}], "c": (1, 2)})
    assert read_record(file, "fix it") == {"a": 1, "b": [1.5, None, {"3": "x"}], "c": [1, 2]}
    file.write_text(file.read_text().replace("1.5", "1.7"))
    with pytest.raises(ManticoreError, match=r"its content is not what was written\)\. Fix: fix it"):
        read_record(file, "fix it")


def test_a_small_file_is_always_read_and_a_large_one_when_it_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return path.read_text()

    monkeypatch.setattr(ledger, "file_digest", counted)

    def digest() -> str:
        return Digests(memory).of(file)

    def rewritten(text: str) -> None:
        """With the times and the size that it had."""
        times = file.stat()
        file.write_text(text)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    file.write_text("one")
    assert digest() == "one"
    rewritten("two")
    assert digest() == "two"
    assert not memory.exists()
    monkeypatch.setattr(ledger, "_ALWAYS_READ", 2)
    assert [digest(), digest()] == ["two", "two"]
    assert len(read) == 3
    rewritten("six")
    assert digest() == "six"
    memory.write_text("{")
    assert digest() == "six"


def go(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two stages; the second reads what the first made, and weights from outside."""
    reads = {"weights of a": "1" * 64, "data, train": "2" * 64} | changes.pop("reads", {})

    def work(own: Path) -> Outcome:
        (own / "model").mkdir(exist_ok=True)
        (own / "model" / "model.safetensors").write_bytes(b"weights of " + own.name.encode())
        (own / "model" / "config.json").write_text("{}")
        if changes.get("fails") == own.name:
            raise KeyboardInterrupt
        return Outcome({own.name: {"loss": 0.5}}, "done")

    stages = [GuardedStage(name, "plan", {"value": 1}, work, reads=lambda: reads) for name in ("a", "b")]
    return run_stages(folder, stages, LogReporter(), lambda so_far: None)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that was stopped in its second stage."""
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, fails="b")
    return tmp_path


def test_a_stopped_run_goes_on(stopped: Path) -> None:
    assert go(stopped) == {"a": {"loss": 0.5}, "b": {"loss": 0.5}}


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        ({"weights of a": "3" * 64}, "b: .* is of another model: it was started with weights of a=111111111111 "),
        ({"data, train": "3" * 64}, "b: .* is of other data: it was started with data, train=222222222222 "),
    ],
)
def test_inputs_that_changed_are_refused_at_the_next_stage(stopped: Path, reads: dict[str, str], said: str) -> None:
    with pytest.raises(ManticoreError, match=said + r".*Fix: put them back as they were, or start a new run"):
        go(stopped, reads=reads)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "missing", "no folder"])
def test_an_earlier_model_that_changed_is_refused_and_can_be_made_again(stopped: Path, file: str, how: str) -> None:
    weights = stopped / "a" / "model" / file
    if how == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        times = weights.stat()
        weights.write_bytes(content)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif how == "cut":
        weights.write_bytes(b"")
    elif how == "missing":
        weights.unlink()
    else:
        shutil.rmtree(weights.parent)
    with pytest.raises(ManticoreError, match=r"later stages read it\. Fix: put it back, or remove the folder"):
        go(stopped)
    shutil.rmtree(stopped / "a")
    assert go(stopped) == {"a": {"loss": 0.5}, "b": {"loss": 0.5}}


@pytest.mark.parametrize("change", [("0.5", "0.6"), ("done", "gone"), ("finished", "finishes"), ("{", "", 1)])
def test_a_state_with_a_flipped_number_is_not_believed(stopped: Path, change: tuple) -> None:
    file = stopped / "a" / STATE
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ManticoreError, match=r"state\.json: cannot be read .*Fix: remove the folder") as caught:
        go(stopped)
    assert "\n" not in str(caught.value)


def test_a_finished_run_whose_models_were_removed_stays_finished(stopped: Path) -> None:
    go(stopped)
    shutil.rmtree(stopped / "a" / "model")
    assert go(stopped) == {"a": {"loss": 0.5}, "b": {"loss": 0.5}}


def test_a_run_of_the_version_before_goes_on(stopped: Path) -> None:
    for stage in ("a", "b"):
        file = stopped / stage / STATE
        record = json.loads(file.read_text())
        for name in ("read", "made", "sha256"):
            record.pop(name, None)
        file.write_text(json.dumps(record))
    assert go(stopped) == {"a": {"loss": 0.5}, "b": {"loss": 0.5}}
