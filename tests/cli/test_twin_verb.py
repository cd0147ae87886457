"""The verb that makes twins: what it writes and says, and what it refuses before it begins."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import CODE, byte_level
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.cli.app import app

TINY = ["--tokens", "128", "--length", "16", "--batch-size", "2"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A parent with a byte tokenizer, and a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_level()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained("parent")
    tokenizer.save_pretrained("parent")
    (tmp_path / "text.txt").write_text("\n\n".join(f"{text}# {i}" for i in range(12) for text in CODE))
    return tmp_path


def test_it_fits_saves_the_tokenizer_and_suggests_what_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["twin", "parent", "--layers", "1,2", *TINY, "--text", "text.txt", "-o", "twin"]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manticore, "twin", stop)
        patched.setattr("sys.argv", ["manticore", *words])
        stopped = CliRunner().invoke(app, words)
    assert stopped.exit_code == 130
    assert stopped.stdout.splitlines()[-1] == f"next: {shlex.join(['manticore', *words])}"
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    said = result.stdout.splitlines()
    record = json.loads(Path("twin", "twin.json").read_text())
    assert list(record["after"]) == ["1", "2"]
    assert f"  layer 2: {record['before']['2']:.3f} {record['after']['2']:.3f}" in said
    assert said[-2:] == ["wrote twin", "next: manticore combine parent twin --num-blocks 4 -o hybrid"]
    twin = AutoModelForCausalLM.from_pretrained("twin")
    assert twin.config.layers == [1, 2]
    assert Path("twin", "tokenizer.json").exists()
    assert not list((desk / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mixer", "gated-delta"], "--mixer"),
        (["--layers", "1,9"], "layer 9, but the parent has 4"),
        (["--window", "8"], "window is 8 with mixer"),
        (["--layers", "x"], "--layers"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_words_end_in_one_line(desk: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["twin", "parent", *TINY, *words, "-o", "new"])
    assert result.exit_code == 2
    told = result.stderr.splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert not Path("new").exists()
