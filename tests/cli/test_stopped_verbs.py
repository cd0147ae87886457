"""A verb that is stopped by anything leaves a folder that says what it is, and goes on from there with --resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from once import once
from stopping import Command, done
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.cli.unfinished import NOTE
from manticore.hybrid.combine import combine

if sys.platform != "linux":
    pytest.skip("limits of a process at work are set as Linux does", allow_module_level=True)
import resource

TASK = ["--task", "mad/in-context-recall", "--task-option", "seq_len=12", "--task-option", "num_train_examples=64"]
TASK += ["--task-option", "num_test_examples=8", "--task-option", "num_validation_examples=8"]
TRAINING = ["--batch-size", "4", "--steps", "36", "--save-steps", "4"]
VERBS: dict[str, tuple[list[str], str]] = {
    "finetune": (["finetune", "hybrid", *TASK, *TRAINING], "finetune/checkpoints/checkpoint-*"),
    "search": (["search", "hybrid", "--method", "darts", *TASK, *TRAINING], "search/checkpoints/checkpoint-*"),
    "compare": (
        [
            *("compare", "gpt", "mamba", *TASK, "--batch-size", "4", "--budget-flops", "2e7", "--seeds", "0"),
            *("--budgets", "0,0.5,1", "--learning-rates", "1e-3"),
        ],
        "compare/units/*/checkpoints/checkpoint-*",
    ),
}
STOPS = ("SIGINT", "SIGTERM", "SIGKILL", "full disk")


@pytest.fixture(scope="module")
def desk(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and what each verb makes of them when nothing stops it."""

    def fill(desk: Path) -> None:
        for name in ("gpt", "mamba"):
            shutil.copytree(shelf / name, desk / name)
        combine([str(desk / "gpt"), str(desk / "mamba")], num_blocks=2, check=False).save_pretrained(desk / "hybrid")
        for verb, (words, _) in VERBS.items():
            done([*words, "-o", verb], desk)

    return once(tmp_path_factory, "stopped verbs", fill)


def numbers(value: Any) -> Any:
    """A record without what depends on the clock."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key not in ("seconds", "created")}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def files(folder: Path) -> dict[str, Any]:
    """What lies at the top of an output folder: weights, configuration, records."""
    found: dict[str, Any] = {}
    for file in folder.iterdir():
        if file.suffix == ".json":
            found[file.name] = numbers(json.loads(file.read_text()))
        else:
            found[file.name] = file.read_bytes() if file.is_file() else None
    return found


def stop(command: Command, how: str) -> None:
    if how == "full disk":
        # from here on the system refuses to write more than what is printed, as it does when a disk is full
        resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    else:
        os.kill(command.pid, getattr(signal, how))


@pytest.mark.parametrize(
    ("verb", "how"),
    [
        *((verb, how) for verb in ("finetune", "search") for how in STOPS),
        ("compare", "SIGTERM"),
        ("compare", "SIGKILL"),
    ],
)
def test_a_stopped_verb_goes_on_to_the_numbers_of_an_unstopped_one(desk: Path, verb: str, how: str) -> None:
    words, half_done = VERBS[verb]
    out = desk / f"{verb} {how}"
    words = [*words, "-o", out.name]
    command = Command(words, desk)
    command.wait_for(out, half_done)
    stop(command, how)
    code, said = command.end()
    expected = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL, "full disk": 2}[how]
    assert code == expected, said
    assert "Traceback" not in said
    assert "--resume" in (out / NOTE).read_text()
    assert not (out / "config.json").exists()
    if how != "SIGKILL":
        assert f"kept in {desk / out.name}" in said or f"kept in {out.name}" in said
        assert "--resume" in said
        assert "nothing was written" not in said

    refused = CliRunner().invoke(app, [*words[:-1], str(out)])
    assert refused.exit_code == 2
    assert "Fix: the same command with --resume goes on with it" in refused.stderr

    done([*words, "--resume"], desk)
    assert files(out) == files(desk / verb)
    again = CliRunner().invoke(app, [*words[:-1], str(out), "--resume"])
    assert again.exit_code == 2
    assert "there is nothing to resume" in again.stderr


def test_another_process_is_told_apart_and_what_was_stopped_early_leaves_nothing(desk: Path) -> None:
    words, half_done = VERBS["finetune"]
    out = desk / "busy"
    command = Command([*words, "--steps", "4000", "-o", "busy"], desk)
    command.wait_for(out, half_done)
    code, said = Command([*words, "-o", "busy", "--resume"], desk).end()
    assert code == 2
    assert f"process {command.pid} on " in said
    assert "is working in this run folder" in said
    stop(command, "SIGTERM")
    assert command.end()[0] == 143
    # other settings are refused, and what is kept stays
    code, said = Command([*words, "-o", "busy", "--resume"], desk).end()
    assert code == 2
    assert "was started with" in said
    assert any(out.glob(half_done))

    early = Command([*words, "--save-steps", "4000", "--steps", "4000", "-o", "early"], desk)
    early.wait_for(desk, "early/finetune/metrics.jsonl")
    stop(early, "SIGINT")
    code, said = early.end()
    assert code == 130
    assert "stopped, nothing was written" in said
    assert not (desk / "early").exists()


def test_a_model_that_changed_meanwhile_is_refused(desk: Path) -> None:
    words, half_done = VERBS["finetune"]
    shutil.copytree(desk / "gpt", desk / "other")
    words = [words[0], "other", *words[2:], "-o", "changed"]
    command = Command(words, desk)
    command.wait_for(desk / "changed", half_done)
    stop(command, "SIGKILL")
    command.end()
    weights = desk / "other" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    # the last bit of a number in the middle
    content[begin + (len(content) - begin) // 8 * 4] ^= 1
    weights.write_bytes(content)
    code, said = Command([*words, "--resume"], desk).end()
    assert code == 2
    assert "is of another model: it was started with weights=" in said
    assert "Traceback" not in said
