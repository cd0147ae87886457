"""Stages, locks and files: what is skipped, what starts over, and what a failure leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manticore.errors import ManticoreError
from manticore.runs.lock import locked
from manticore.runs.stages import GuardedStage, Outcome, run_stages
from manticore.writing import new_folder, write_text

ROOT = Path(__file__).resolve().parents[2]


class Watcher:
    """Notes a run's events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def started(self, stage: str, plan: str) -> None:
        self.events.append(f"{stage} started")

    def skipped(self, stage: str, seconds: float, outcome: str) -> None:
        self.events.append(f"{stage} skipped")

    def finished(self, stage: str, seconds: float, outcome: str) -> None:
        self.events.append(f"{stage} finished")

    def progress(self, what: str, step: int, steps: int, loss: float | None) -> None:
        self.events.append(f"{what} {step}/{steps}")


def go(folder: Path, *inputs: int, fail_in: str = "") -> tuple[list[str], dict]:
    """Run stages a, b, c with these inputs; their results, and what happened."""
    watcher = Watcher()

    def stage(name: str, value: int) -> GuardedStage:
        def work(own: Path) -> Outcome:
            if name == fail_in:
                (own / "half").touch()
                raise ManticoreError(f"{name} cannot")
            return Outcome({"all": {name: value}, name: {"half": (own / "half").exists()}}, "done")

        return GuardedStage(name, "plan", {"value": value}, work)

    stages = [stage(name, value) for name, value in zip("abc", inputs)]
    results: dict = {}
    try:
        results = run_stages(folder, stages, watcher, lambda so_far: None)
    except ManticoreError as error:
        watcher.events.append(str(error))
    return watcher.events, results


def test_finished_stages_are_skipped_and_their_results_kept(tmp_path: Path) -> None:
    _, first = go(tmp_path, 1, 2, 3)
    events, second = go(tmp_path, 1, 2, 3)
    assert events == ["a skipped", "b skipped", "c skipped"]
    assert second == first
    assert second["all"] == {"a": 1, "b": 2, "c": 3}


def test_a_changed_stage_starts_over_and_so_do_those_after_it(tmp_path: Path) -> None:
    go(tmp_path, 1, 2, 3)
    (tmp_path / "b" / "half").touch()
    events, results = go(tmp_path, 1, 7, 3)
    assert events == ["a skipped", "b started", "b finished", "c started", "c finished"]
    assert results["all"] == {"a": 1, "b": 7, "c": 3}
    assert results["b"] == {"half": False}


def test_an_interrupted_stage_finds_what_it_left_behind(tmp_path: Path) -> None:
    events, _ = go(tmp_path, 1, 2, 3, fail_in="b")
    assert events[-2:] == ["b started", "b cannot"]
    events, results = go(tmp_path, 1, 2, 3)
    assert events[:3] == ["a skipped", "b started", "b finished"]
    assert results["b"] == {"half": True}


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    go(tmp_path, 1, 2, 3)
    (tmp_path / "b" / "state.json").write_text("{")
    events, _ = go(tmp_path, 1, 2, 3)
    assert events[-1].startswith(f"{tmp_path}/b/state.json: cannot be read (Expecting property name")
    assert events[-1].endswith(f"Fix: remove the folder {tmp_path}/b, then resume")


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from manticore.runs.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said = rf"process {holder.pid} on .* is working in this run folder\. Fix: "
    with pytest.raises(ManticoreError, match=said), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def make(out: Path, *, fails: bool = False, meanwhile: Path | None = None) -> None:
    """Write a new folder; fail on the way, or see another one appear in its place."""
    with new_folder(out) as folder:
        (folder / "part").touch()
        assert not out.exists()
        if meanwhile is not None:
            meanwhile.mkdir()
            (meanwhile / "theirs").touch()
        if fails:
            raise ManticoreError("half")


def test_an_output_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(ManticoreError, match="half"):
        make(out, fails=True)
    assert list(out.parent.iterdir()) == []
    make(out)
    assert [path.name for path in out.parent.rglob("*")] == ["out", "part"]
    with pytest.raises(ManticoreError, match="exists already, nothing was changed"):
        make(out)


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ManticoreError, match="exists already"):
        make(tmp_path / "out", meanwhile=tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "new \ud800")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("how", ["whole", "cut off", "flipped", "missing", "folder missing", "one more"])
def test_a_product_is_checked_before_it_is_believed(tmp_path: Path, how: str) -> None:
    product = tmp_path / "model"
    weights = product / "model.safetensors"

    def work(own: Path) -> Outcome:
        shutil.rmtree(product, ignore_errors=True)
        product.mkdir()
        weights.write_bytes(b"weights")
        return Outcome({"all": {"a": 1}}, "done")

    def events() -> list[str]:
        watcher = Watcher()
        run_stages(tmp_path, [GuardedStage("a", "plan", {}, work, product)], watcher, lambda so_far: None)
        return watcher.events

    assert events() == ["a started", "a finished"]
    if how == "cut off":
        weights.write_bytes(b"wei")
    elif how == "flipped":
        weights.write_bytes(b"weighty")
    elif how == "missing":
        weights.unlink()
    elif how == "folder missing":
        shutil.rmtree(product)
    elif how == "one more":
        (product / "another.safetensors").write_bytes(b"")
    assert events() == (["a skipped"] if how == "whole" else ["a started", "a finished"])
    assert [file.read_bytes() for file in product.iterdir()] == [b"weights"]
