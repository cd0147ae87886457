"""``manticore plan``: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manticore.cli.app import app


def test_models_are_planned_without_weights(shelf: Path, tmp_path: Path) -> None:
    for name in ("gpt", "mamba"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((shelf / name / "config.json").read_bytes())
    file = tmp_path / "plan.json"
    words = [
        "plan",
        str(tmp_path / "gpt"),
        str(tmp_path / "mamba"),
        "combine.num_blocks=2",
        "task.options.length=16",
        "align.length=16",
    ]
    result = CliRunner().invoke(app, [*words, "--device-memory", "1GB", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "finetune" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: manticore combine ")
    assert json.loads(file.read_text())["runnable"] is True
    # what cannot go through is not suggested to be gone on with
    left_out = ["align=null", "search=null", "compare=null", "discretize.path=[0,0]"]
    result = CliRunner().invoke(app, [*words[:-1], *left_out, "--device-memory", "1MB"])
    assert "This run cannot go through as it is:" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: change that, then manticore plan ")


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "nothing-like-it"],
        ["plan", "gpt2", "nobody/nothing"],
        ["plan", "combine.num_blocks=2"],
        ["plan", "quickstart", "combine.num_blocks=9"],
        ["plan", "quickstart", "--device-memory", "much"],
        ["plan", "quickstart", "--measure", "1", "--flops-per-second", "1e9"],
    ],
)
def test_what_cannot_be_planned_ends_with_one_line(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert result.stderr.strip().startswith("error: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 10**9, "attention_types": [[["global"], 10**9]]},
        {"hidden_size": -16},
        {"num_heads": 0},
        {"vocab_size": 10**12},
    ],
    ids=["depth", "width", "heads", "rows"],
)
def test_hostile_configurations_end_with_one_line(shelf: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    config = json.loads((shelf / "gpt" / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["plan", str(tmp_path), str(shelf / "mamba"), "task.options.length=8"])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.strip().startswith("error: ")
    assert "\n" not in result.stderr.strip()


def test_steps_are_timed_for_the_time(shelf: Path) -> None:
    words = ["plan", str(shelf / "gpt"), str(shelf / "mamba"), "combine.num_blocks=2", "align=null", "compare=null"]
    sizes = ["task.options.length=8", "search.batch_size=2", "finetune.batch_size=2", "search.accumulation=1"]
    result = CliRunner().invoke(app, [*words, *sizes, "--measure", "1", "--device-memory", "1GB"])
    assert result.exit_code == 0, result.output
    assert "/s on each device" in result.stdout
