"""Mistyped verbs and options: the same one line as for every other mistake, with the nearest name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manticore.cli.app import app


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("serach x", "manticore: no such command 'serach'. Fix: did you mean 'search'?"),
        ("fly", "manticore: no such command 'fly'. Fix: see `manticore -h`"),
        ("--vesion", "manticore: no such option --vesion. Fix: did you mean --version?"),
        ("align h --tokns 3 -o x", "manticore align: no such option --tokns. Fix: did you mean --tokens?"),
        ("align h --qqq 3 -o x", "manticore align: no such option: --qqq. Fix: see `manticore align -h`"),
        ("align", "manticore align: missing argument 'HYBRID'. Fix: see `manticore align -h`"),
        ("align h", "manticore align: missing option '--out' / '-o'. Fix: see `manticore align -h`"),
        ("ls tasks too", "manticore ls: got unexpected extra argument(s) (too). Fix: see `manticore ls -h`"),
    ],
)
def test_a_mistyped_command_is_one_line(arguments: str, line: str) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert (result.exit_code, result.stderr, result.stdout) == (2, f"error: {line}\n", "")


def test_a_value_of_the_wrong_kind_names_its_option() -> None:
    result = CliRunner().invoke(app, ["evaluate", "x", "-t", "text", "--batch-size", "many"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: manticore evaluate: invalid value for '--batch-size': ")
    assert result.stderr.endswith(". Fix: see `manticore evaluate -h`\n")
    assert result.stderr.count("\n") == 1


def test_all_that_a_family_lacks_is_named_in_a_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pretrain", "gpt_neo", "-o", str(tmp_path / "new")])
    assert result.exit_code == 2
    assert result.stderr.endswith("error: pretrain: gpt_neo needs layers and width. Fix: give both, such as 4 and 64\n")
    assert result.stderr.count("error") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    "words",
    [
        "pretrain gpt_neo --layers 2 --width 32 -o",
        "combine a b -o",
        "align a -o",
        "search a -t text -o",
        "discretize a -o",
        "finetune a -t text -o",
        "compare a b -t text -o",
        "evaluate a -t text -o",
        "mad transformer -o",
        "run quickstart -o",
        "cp quickstart",
    ],
)
def test_a_place_where_nothing_can_be_made_is_one_line(words: str) -> None:
    # root may write there by its rights, and yet cannot
    result = CliRunner().invoke(app, [*words.split(), "/proc/x"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert re.match("error: .*/proc.* Fix: choose another", result.stderr)


def test_without_a_verb_help_appears() -> None:
    result = CliRunner().invoke(app, [])
    assert "Usage: manticore" in result.output
    assert "error:" not in result.output
