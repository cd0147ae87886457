"""Environments, damaged records, links and names that act on a terminal: each one true line, exit code 2."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from tiny_models import gpt_neo_config, seeded
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.cli.faults import disk_trouble
from manticore.cli.terminal import console, say
from manticore.components.sources import refuse_unreadable
from manticore.errors import ManticoreError
from manticore.printing import OneLineFormatter, one_line, printable
from manticore.report import write_report
from manticore.runs.folder import create_run, open_run
from manticore.runs.ledger import RunLog
from manticore.runs.lock import LOCK, OWNER, locked
from manticore.runs.stages import STATE, stage_state
from manticore.schema.loading import load_recipe
from manticore.tasks.task import load_task
from manticore.training.checkpoints import open_folder
from manticore.training.prepare import check_tokens

LONG = "n" * 300


def refused(*words: str) -> str:
    """The one line that a command ends with."""
    result = CliRunner().invoke(app, list(words))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    # a plan of two models finds the same wrong with both
    assert len(lines) == 1 or (len(lines) == 2 and words[0] == "plan"), lines
    assert lines[-1] == result.stderr.splitlines()[-1]
    return lines[0]


@pytest.mark.parametrize(
    "words",
    [
        ("check", "{}"),
        ("show", "{}"),
        ("cp", "quickstart", "{}/x.yaml"),
        ("run", "quickstart", "-o", "{}"),
        ("resume", "{}"),
        ("report", "{}"),
        ("plan", "{}", "{}"),
        ("combine", "{}", "b", "-o", "out"),
        ("combine", "a", "b", "-o", "{}/out"),
        ("evaluate", "{}", "--task", "text"),
        ("share", "{}"),
        ("check", "quickstart", "components.0.source={}"),
    ],
)
def test_names_too_long_and_users_that_are_not_there(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(*(word.format("~nosuchuser") for word in words))
    # share takes the path as it stands
    assert "no home folder for '~nosuchuser" in line or (words[0] in ("share", "show") and "~nosuchuser" in line)
    line = refused(*(word.format(LONG) for word in words))
    assert "name is too long" in line or "no such" in line or "neither" in line or "expected" in line, line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [200, 240, 250, 255])
def test_the_longest_names_that_a_file_system_takes_are_taken(tmp_path: Path, length: int) -> None:
    target = tmp_path / ("é" * (length // 2 - 3) + ".yaml")
    assert CliRunner().invoke(app, ["cp", "quickstart", str(target)]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_terminal_of_ascii_is_no_reason_to_stop(tmp_path: Path) -> None:
    recipe = tmp_path / "café→.yaml"
    recipe.write_text(load_recipe("quickstart").text, encoding="utf-8")
    names = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "manticore", "check", str(recipe)], env=names, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\\xe9\\u2192.yaml: ok" in done.stdout


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


def test_a_file_that_may_not_be_read_is_not_called_damaged(open_place: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (open_place / name).write_text("{}")
    refuse_unreadable(str(open_place))
    (open_place / "model.safetensors").chmod(0)
    mine = os.geteuid()
    try:
        if mine == 0:
            os.seteuid(12345)
        with pytest.raises(ManticoreError, match=r"safetensors: may not be read \(permission denied\)\. Fix: ask"):
            refuse_unreadable(str(open_place))
    finally:
        os.seteuid(mine)


def test_a_limit_of_file_sizes_is_not_called_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "from manticore.cli.app import main; sys.argv = ['manticore', 'cp', 'quickstart', sys.argv[1]]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.yaml")], capture_output=True, timeout=120)
    assert done.returncode == 2
    assert b"larger than allowed here. Fix: raise the limit (ulimit -f)" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("I/O error: No space left on device (os error 28)", "the disk is full"),
        ("Error while serializing: File too large (os error 27)", "larger than allowed here"),
        ("Disk quota exceeded (os error 122)", "the disk quota is used up"),
        ("PytorchStreamWriter failed writing file data/0: file write failed", "the disk is full"),
    ],
)
def test_what_libraries_say_of_a_disk_is_told_apart(said: str, expected: str) -> None:
    assert expected in str(disk_trouble(RuntimeError(said)))


def test_a_write_that_failed_under_a_limit_is_laid_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4096, 4096))
    assert "larger than allowed here" in str(disk_trouble(RuntimeError("file write failed")))
    assert "the disk is full" in str(disk_trouble(OSError(errno.ENOSPC, "")))


LAUNCHER = """
import os, subprocess, sys, time
worker = ("import os, time; from manticore.processes import end_with_launcher;"
          "end_with_launcher(); os.write(1, b'%d ' % os.getpid()); time.sleep(600)")
os.environ.update(MANTICORE_LAUNCHER=str(os.getpid()), WORLD_SIZE="2")
for rank in "01":
    subprocess.Popen([sys.executable, "-c", worker], env={**os.environ, "RANK": rank})
time.sleep(600)
"""


def test_workers_end_with_a_launcher_that_was_killed() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert _number_from(launcher.stdout) != _number_from(launcher.stdout)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    # closed once no process holds its other end
    waited = time.monotonic()
    assert launcher.stdout.read() == ""
    assert time.monotonic() - waited < 60
    launcher.stdout.close()


def _number_from(stream: IO[str]) -> int:
    digits = ""
    while not digits.endswith(" "):
        digits += stream.read(1)
    return int(digits)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    create_run(load_recipe("quickstart"), str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"sessions": 5}', '{"sessions": [1]}', "1" * 5000, "[" * 10**5]
)
def test_a_damaged_environment_is_one_line(run_folder: Path, content: str) -> None:
    (run_folder / "environment.json").write_text(content)
    with pytest.raises(
        ManticoreError, match=r"environment\.json: cannot be read .*Fix: remove it, then resume"
    ) as caught:
        open_run(run_folder).begin_session()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"status": "finished"}', '{"seconds": 1, "status": "finished"}', "\ud800"]
)
def test_a_damaged_state_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / STATE).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ManticoreError, match=r"state\.json: cannot be read .*Fix: remove the folder"):
        stage_state(tmp_path)


def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATE)
    with pytest.raises(ManticoreError, match="not a regular file"):
        stage_state(tmp_path)


def test_damaged_settings_of_checkpoints_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(ManticoreError, match=r"settings\.json: cannot be read .*Fix: choose another out"):
        open_folder(tmp_path, {}, resume=True, stage="finetune")


@pytest.mark.parametrize("content", ["[]\n", "{}\n", '{"settings": {}}\n{"unit": 1}\n', "\x00\n", "x\n"])
def test_damaged_results_of_units_are_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "units.jsonl").write_text(content)
    with pytest.raises(ManticoreError, match=r"units\.jsonl: cannot be read .*Fix: choose another out"):
        RunLog(tmp_path / "units.jsonl", {}, resume=True, stage="compare")


def test_a_damaged_lock_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(ManticoreError, match=r"\.lock: cannot be locked .*Fix: remove it"), locked(tmp_path):
        pass
    (tmp_path / LOCK).rmdir()
    with locked(tmp_path):
        (tmp_path / OWNER).write_bytes(b"\xff\x1b[31m\n")
        with pytest.raises(ManticoreError, match=r"another process is working"), locked(tmp_path):
            pass


def test_tokens_beyond_the_rows_of_a_model_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    small = seeded(gpt_neo_config(100, 8, 1, eos_token_id=0), 0).eval()
    words = tmp_path / "words.txt"
    words.write_text("def f(x):\n    return x + 1\n" * 100)
    text = load_task("text", tokenizer=tokenizer, source=str(words), length=16)
    for verb in (manticore.finetune, manticore.evaluate):
        with pytest.raises(ManticoreError, match=r"knows more tokens than the model has rows \(got id 2\d\d, expected"):
            verb(small, text)
    small.save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    assert "its tokenizer knows more tokens than the model has rows" in refused(
        "generate", str(tmp_path / "gpt"), "def f"
    )
    check_tokens(99, small, "text")


@pytest.mark.parametrize("inside", ["figures", "finetune", "compare/units"])
def test_nothing_is_written_through_links_of_a_run_folder(run_folder: Path, inside: str) -> None:
    outside = run_folder.parent / "outside"
    outside.mkdir()
    (outside / "weights.svg").write_text("mine")
    (run_folder / inside).parent.mkdir(exist_ok=True)
    (run_folder / inside).symlink_to(outside)
    for verb in ("report", "resume"):
        assert f"{inside} is a link that leads out of the folder, nothing was written" in refused(verb, str(run_folder))
    with pytest.raises(ManticoreError, match="is a link that leads out"):
        write_report(run_folder)
    assert [path.read_text() for path in outside.iterdir()] == ["mine"]
    (run_folder / inside).unlink()
    (run_folder / "beside").mkdir()
    (run_folder / inside).symlink_to(run_folder / "beside")
    assert open_run(run_folder).path == run_folder


def test_checkpoints_are_not_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".partial").symlink_to(tmp_path)
    with pytest.raises(ManticoreError, match=r"\.partial is a link that leads out"):
        open_folder(tmp_path / "run", {}, resume=True, stage="finetune")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain → é☃", "plain → é☃"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nnext: rm", r"a\nnext: rm"),
        ("a\rb\tc\x07\x9b", r"a\rb\tc\x07\x9b"),
        ("a\u202eb\u2028c\udcffd", r"a\u202eb\u2028c\udcffd"),
        ("wide\u00a0\u3000space", "wide\u00a0\u3000space"),
    ],
)
def test_names_cannot_act_on_a_terminal(text: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line(text) == expected
    assert printable("one\ntwo\tthree") == "one\ntwo\tthree"
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (text,), None)
    assert OneLineFormatter("%(message)s").format(record) == expected
    say(text)
    assert capsys.readouterr().out.encode("utf-8", "backslashreplace").decode() == f"{expected}\n"
    console.print(f"[bold]{text.replace('[', '(')}[/bold]")
    assert "\x1b" not in capsys.readouterr().out


def test_errors_hold_one_line_whatever_they_name(tmp_path: Path) -> None:
    name = "a\x1b[31m\nnext: rm -rf ~"
    assert r"a\x1b[31m\nnext: rm -rf ~" in refused("report", str(tmp_path / name))


def test_a_suggested_command_is_quoted(run_folder: Path) -> None:
    odd = run_folder.with_name("a b; echo c")
    run_folder.rename(odd)
    line = refused("run", "quickstart", "-o", str(odd))
    assert f"`manticore resume {shlex.quote(str(odd))}` goes on" in line


def test_numbers_that_python_cannot_print_are_refused(tmp_path: Path) -> None:
    for value in ("1" * 4301, "0x" + "f" * 5000, "1" * 400):
        assert "cannot be read as int" in refused("check", "quickstart", f"seed={value}") or len(value) == 400
    for key in ("components.².source", f"components.{'1' * 4301}.source"):
        assert "no entry" in refused("check", "quickstart", f"{key}=x")
    record = tmp_path / "grid.json"
    record.write_text(json.dumps({"a": 1}))
