"""The command line as a person meets it: quick help, one line per mistake, nothing changed by a failure."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manticore.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
VERBS = [command.callback.__name__ for command in app.registered_commands]


def test_help_is_quick_and_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from manticore.cli import main\n"
        "sys.argv = ['manticore', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('loaded', [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # time on the processor: how long one waits depends on what else this machine does
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert finished.stdout.strip().endswith("loaded []")
    assert "quickstart" in finished.stdout
    assert seconds < 1.0


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "manticore", "check", "quickstart", "no.such.key=1"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2
    assert "no.such.key" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_command_that_is_asked_to_end_clears_away_what_is_half_written(tmp_path: Path) -> None:
    code = (
        "import time\n"
        "from manticore.cli.faults import end_tidily_on_sigterm, reported\n"
        "from manticore.writing import new_folder\n"
        "end_tidily_on_sigterm()\n"
        "with reported(), new_folder('out') as aside:\n"
        "    (aside / 'half').write_text('')\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        child.terminate()
    assert child.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_check_needs_no_torch_either() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from typer.testing import CliRunner\n"
        "from manticore.cli.app import app\n"
        "print(CliRunner().invoke(app, ['check', 'quickstart']).exit_code)\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.stdout.split("\n")[:2] == ["0", "[]"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Example: manticore {verb}" in result.output


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_whole_on_a_narrow_terminal(verb: str) -> None:
    narrow, wide = (
        CliRunner(env={"COLUMNS": columns, "TERMINAL_WIDTH": columns}).invoke(app, [verb, "--help"]).output
        for columns in ("80", "300")
    )
    names = [set(re.findall(r"(?<!\S)--[a-z][a-z-]+", text)) for text in (narrow, wide)]
    assert names[0] == names[1] >= {"--help"}
    assert max(map(len, narrow.splitlines())) <= 80


def test_stage_options_are_those_of_the_recipe_with_their_defaults() -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["finetune", "--help"]).output
    for text in ("--weight-decay", "AdamW's weight decay", "0.01", "--gradient-checkpointing", "cosine"):
        assert text in shown
    assert "--start " not in shown


def test_ls_and_show_name_everything() -> None:
    listed = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["ls"]).output
    for name in ("quickstart", "mad/in-context-recall", "darts", "translated", "low-rank"):
        assert name in listed
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", "mad/in-context-recall"]).output
    assert "vocab_size" in shown
    assert "half of the tokens are keys" in shown
    assert "search.mixture_lr" in CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", "schema"]).output
    text = CliRunner().invoke(app, ["show", "quickstart"]).output
    assert text == (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")


def test_cp_copies_a_recipe_and_overwrites_nothing(tmp_path: Path) -> None:
    runner = CliRunner()
    target = tmp_path / "mine.yaml"
    assert runner.invoke(app, ["cp", "quickstart", str(target)]).exit_code == 0
    target.write_text("mine")
    again = runner.invoke(app, ["cp", "quickstart", str(target)])
    assert again.exit_code == 2
    assert again.stderr.startswith(f"error: {target}: exists already")
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check", "quickstart", "search.setps=1"], "search.setps: unknown key. Did you mean 'steps'?"),
        (["run", "quikstart"], "no recipe 'quikstart'. Did you mean 'quickstart'?"),
        (["run", "quickstart", "task.name=mad/recall"], "unknown task 'mad/recall'"),
        (["show", "dart"], "nothing is called 'dart'. Did you mean 'darts'?"),
        (["ls", "recipe"], "nothing is called 'recipe'. Did you mean 'recipes'?"),
        (["resume", "nowhere"], "nowhere: no such run folder"),
        (["report", "nowhere"], "nowhere: no such run folder"),
        (["search", "h", "-t", "mad/recal", "-o", "x"], "--task: unknown task 'mad/recal'"),
        (
            ["search", "h", "-t", "text", "-o", "x", "--method", "drats"],
            "--method: unknown search method 'drats'. Did you mean",
        ),
        (["search", "h", "-t", "text", "-o", "x", "--lr", "0"], "--lr: wrong value (got 0.0, expected > 0)"),
        (["search", "h", "-t", "text", "-o", "x", "--task-option", "lenth=3"], "--task-option lenth: unknown option"),
        (
            ["search", "h", "-t", "text", "-o", "x", "--task-option", "lenth"],
            "--task-option: wrong value (got 'lenth',",
        ),
        (["discretize", "h", "-o", "x", "--path", "0,b"], "--path: wrong value (got 'b', expected a whole number)"),
        (["combine", "a", "b", "-o", "x", "--projector-option", "rank=2"], "--projector-option rank: unknown option"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert list(tmp_path.iterdir()) == []
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr


def test_an_unknown_verb_or_option_suggests_the_right_one() -> None:
    result = CliRunner().invoke(app, ["serach"])
    assert result.exit_code == 2
    assert "search" in result.stderr
    assert CliRunner().invoke(app, ["check", "quickstart", "--deeep"]).exit_code == 2


def test_a_fault_of_ours_shows_its_traceback_and_exits_with_1() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from manticore.cli import app, main\n"
        "from manticore.schema import loading\n"
        "loading.shipped.cache_clear()\n"
        "sys.modules['manticore.recipes'] = None\n"
        "sys.argv = ['manticore', 'ls']\n"
        "main()"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr


def test_doctor_says_which_path_the_scan_takes() -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["doctor"])
    assert result.exit_code == 0
    for text in ("Mamba's scan", "torch ", "transformers ", "cache"):
        assert text in result.stdout
