"""The command that a verb suggests is one that can be pasted: with the user's task, options and odd file names."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.cli.parameters import pairs
from manticore.schema.options import options_of
from manticore.stages.commands import task_words

MAD = ["-t", "mad/in-context-recall", "--task-option", "seq_len=16", "--task-option", "num_train_examples=32"]
SMALL = [*MAD, "--task-option", "num_test_examples=16", "--task-option", "num_validation_examples=16"]
WORDS = (
    "--task mad/in-context-recall --task-option seq_len=16 --task-option num_train_examples=32 "
    "--task-option num_test_examples=16 --task-option num_validation_examples=16"
)


def suggested(*arguments: str) -> str:
    """Run a verb that must succeed; its last line."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[-1]


def test_each_stage_suggests_the_next_on_the_same_task(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gpt", "mamba"):
        shutil.copytree(shelf / name, tmp_path / name)
    train = ("--steps", "2", "--batch-size", "4")
    said = suggested("combine", "gpt", "mamba", "--num-blocks", "2", *SMALL, "-o", "my hybrid")
    # with the task's vocabulary it reads no text that it could be aligned on
    assert said == f"next: manticore search 'my hybrid' {WORDS} -o 'my hybrid-searched'"
    # the suggestion itself runs
    said = suggested(*shlex.split(said.removeprefix("next: manticore ")), "--method", "darts", *train)
    assert said == "next: manticore discretize 'my hybrid-searched' -o 'my hybrid-searched-small'"
    said = suggested(*shlex.split(said.removeprefix("next: manticore ")))
    small = "'my hybrid-searched-small'"
    assert said == f"next: manticore finetune {small} {WORDS} -o 'my hybrid-searched-small-tuned'"
    said = suggested(*shlex.split(said.removeprefix("next: manticore ")), *train)
    assert said == f"next: manticore evaluate 'my hybrid-searched-small-tuned' {WORDS}"
    said = suggested(*shlex.split(said.removeprefix("next: manticore ")))
    assert said.startswith(f"next: manticore finetune 'my hybrid-searched-small-tuned' {WORDS} -o ")
    said = suggested(*shlex.split(said.removeprefix("next: manticore ")), *train)
    quick = ("--budget-flops", "1e7", "--batch-size", "4", "--seeds", "0", "--learning-rates", "1e-3")
    said = suggested("compare", "gpt", "mamba", *SMALL, *quick, "-o", "compared")
    best = said.split()[3]
    assert said == f"next: manticore finetune {best} {WORDS} -o {best}-tuned"
    suggested(*shlex.split(said.removeprefix("next: manticore ")), *train)
    suggested("evaluate", f"{best}-tuned", *SMALL, "-o", "scores/of/best.json")
    assert (tmp_path / "scores/of/best.json").exists()


@pytest.mark.parametrize("value", ["16", "notes v2.txt", "it's", "null", "a: b", 16, 2.5, True, None, "[x]", ""])
def test_options_come_back_as_they_were(value: object) -> None:
    words = shlex.split(task_words("text", {"source": value}))
    assert words[:3] == ["--task", "text", "--task-option"]
    assert pairs(words[3:], "--task-option") == {"source": value}


@pytest.mark.parametrize("value", ["*.jsonl", "@notes", "`x`", "%a", "{", "[a", "hf:", "a: b: c", "- x"])
def test_options_that_are_no_yaml_come_back_too(value: str) -> None:
    words = shlex.split(task_words("text", {"source": value}))
    assert pairs(words[3:], "--task-option") == {"source": value}


@pytest.fixture
def short(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desk with two parents, of which one has 64 positions, and a text."""
    monkeypatch.chdir(tmp_path)
    for name in ("gpt", "mamba"):
        shutil.copytree(shelf / name, tmp_path / name)
    (tmp_path / "notes.txt").write_text("w1 w2 w3 w4 w5 w6 w7\n" * 800)
    return tmp_path


def test_suggested_packs_fit_the_positions_of_the_model(short: Path) -> None:
    def follow(said: str, *more: str) -> str:
        return suggested(*shlex.split(said.removeprefix("next: manticore ")), *more)

    said = suggested("combine", "gpt", "mamba", "--num-blocks", "2", "-o", "both")
    assert said == "next: manticore align both --length 64 -o both-aligned"
    # a pattern is no YAML, and stays the text that it is
    said = follow(said, "--text", "no*s.txt", "--tokens", "512")
    words = "--task text --task-option 'source=no*s.txt' --task-option length=64"
    assert said == f"next: manticore search both-aligned {words} -o both-aligned-searched"
    said = follow(said, "--method", "darts", "--steps", "1", "--batch-size", "1")
    assert said == "next: manticore discretize both-aligned-searched -o both-aligned-searched-small"
    # what was never trained is scored on text that it has positions for, what was trained on what it was trained on
    said = suggested("generate", "both", "w1 w2", "--max-new-tokens", "2")
    assert said == "next: manticore evaluate both --task text --task-option length=64"
    suggested("discretize", "both", "--path", "0,1", "-o", "plain")
    said = suggested("discretize", "both", "--path", "0,1", "-o", "plainer")
    assert said == "next: manticore finetune plainer --task text --task-option length=64 -o plainer-tuned"
    tuned = ["finetune", "plain", "--task", "text", "--task-option", "source=*.txt", "--task-option", "length=16"]
    suggested(*tuned, "--steps", "1", "--batch-size", "1", "-o", "tuned")
    said = suggested("generate", "tuned", "w1 w2", "--max-new-tokens", "2")
    assert said == "next: manticore evaluate tuned --task text --task-option 'source=*.txt' --task-option length=16"
    suggested(*shlex.split(said.removeprefix("next: manticore ")))


@pytest.mark.parametrize("value", ["[notes.txt,more.txt]", "{a: 1}", "hf:"])
def test_a_task_option_is_one_value(short: Path, value: str) -> None:
    words = ["evaluate", "gpt", "--task", "text", "--task-option", f"source={value}"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stderr.count("error:")) == (2, 1)
    assert "--task-option source: wrong value (got a" in result.stderr


def test_defaults_are_shown_as_values() -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", "mad/in-context-recall"]).output
    assert "12345" in shown
    assert "PUBLISHED_SEED" not in shown
    # a constant that another module holds
    assert (options_of("task", "text") or {})["source"].default == "'stdlib'"
