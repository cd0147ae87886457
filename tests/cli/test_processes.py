"""``--processes``: one run by several processes looks like one run, and nothing runs as one without saying so."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.hybrid.combine import combine

TASK = ["--task", "mad/in-context-recall", "--task-option", "seq_len=12", "--task-option", "num_train_examples=16"]
TASK += ["--task-option", "num_test_examples=8", "--task-option", "vocab_size=8"]


@pytest.fixture(scope="module")
def hybrid(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hybrid") / "hybrid"
    combine([str(shelf / "gpt"), str(shelf / "mamba")], num_blocks=2, check=False).save_pretrained(folder)
    return str(folder)


def manticore(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "manticore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_two_processes_print_and_write_once(hybrid: str, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    ended = manticore(
        *(
            "search",
            hybrid,
            *TASK,
            "--method",
            "darts",
            "--steps",
            "2",
            "--batch-size",
            "4",
            "-o",
            str(out),
            "--processes",
            "2",
        )
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("search: 2/2") == 1
    assert ended.stdout.count(f"wrote {out}") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["tuned"]
    assert json.loads((out / "search" / "checkpoints" / "settings.json").read_text())["processes"] == 2
    last = out / "search" / "checkpoints" / "checkpoint-2"
    assert {entry.name for entry in last.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_an_error_in_all_processes_is_one_line_and_exit_code_2(hybrid: str, tmp_path: Path) -> None:
    ended = manticore("finetune", hybrid, *TASK, "--batch-size", "3", "-o", str(tmp_path / "x"), "--processes", "2")
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if "error" in line] == [
        "error: batch_size: 3 cannot be cut into 2 equal parts (accumulation=1, 2 processes). Fix: choose a multiple"
    ]
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_with_another_number_is_refused(
    hybrid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    result = CliRunner().invoke(app, ["search", hybrid, *TASK, "-o", str(tmp_path / "x"), "--processes", "2"])
    assert result.exit_code == 2
    assert "2 are expected, 3 were started" in result.stderr


def test_accelerate_that_starts_one_of_two_processes_is_found_out(hybrid: str, tmp_path: Path) -> None:
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "manticore"]
    ended = subprocess.run(
        [sys.executable, *command, "finetune", hybrid, *TASK, "-o", str(tmp_path / "x")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ended.returncode != 0
    assert "error: processes: accelerate launch was asked for several and started one" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["run quickstart", "evaluate x -t text", "combine a b -o c", "doctor"])
def test_a_verb_that_is_not_shared_is_refused(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = CliRunner().invoke(app, verb.split())
    assert result.exit_code == 2
    assert f"{verb.split()[0]}: started as 2 processes, but its work is not shared" in result.stderr


def test_examples_for_many_machines_are_copied_and_well_formed(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["ls", "launch"]).stdout
    said = {"search-slurm.sh": "sbatch", "search-kubernetes.yaml": "kubectl apply -f"}
    for file, command in said.items():
        name = file.partition(".")[0]
        assert f"{name} " in listed
        assert "One search by four workers" in listed
        result = CliRunner().invoke(app, ["cp", name, str(tmp_path)])
        assert result.exit_code == 0, result.stderr
        assert f"next: {command} {tmp_path / file}" in result.stdout
    subprocess.run(["bash", "-n", tmp_path / "search-slurm.sh"], check=True)
    job = yaml.safe_load((tmp_path / "search-kubernetes.yaml").read_text())
    (worker,) = job["spec"]["template"]["spec"]["containers"]
    script = (tmp_path / "search-slurm.sh").read_text()
    slurm = shlex.split(script.splitlines()[-1])[2:]
    for words in ([*worker["command"], *worker["args"]], slurm):
        # the options that are there, by the command line itself
        context = typer.main.get_command(app).commands["search"].make_context("search", words[2:])  # type: ignore[attr-defined]
        assert context.params["storage"]
        assert context.params["out"]


def test_launch_configurations_are_listed_and_copied(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["ls", "launch"]).stdout
    for name in ("ddp-cpu", "ddp-gpu", "fsdp2"):
        assert name in listed
        result = CliRunner().invoke(app, ["cp", name, str(tmp_path)])
        assert result.exit_code == 0, result.stderr
        assert f"next: accelerate launch --config_file {tmp_path / name}.yaml -m manticore" in result.stdout
        assert f"accelerate launch --config_file {name}.yaml" in (tmp_path / f"{name}.yaml").read_text()
