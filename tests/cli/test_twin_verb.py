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
from manticore.training.budget import cache_cost

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


def said_by(*words: str) -> list[str]:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_from_parent_to_a_path_within_a_bound_on_the_cache(desk: Path) -> None:
    task = ["--task", "text", "--task-option", "source=text.txt", "--task-option", "length=16"]
    said_by("twin", "parent", *TINY, "--text", "text.txt", "-o", "twin")
    said = said_by("combine", "parent", "twin", "--num-blocks", "4", "-o", "hybrid")
    # nothing translates, so that nothing can be aligned
    assert said[-1].startswith("next: manticore search hybrid --task text")
    # of what the parent keeps
    parent = AutoModelForCausalLM.from_pretrained("parent")
    most = str(3 * cache_cost(parent, 512).bytes_per_token * 512 // 4)
    bound = ["--max", f"cache_bytes={most}", "--workload", "tokens=512,batch=1", "--validation-examples", "4"]
    said_by("search", "hybrid", *task, "--method", "swaps", *bound, "-o", "searched")
    record = json.loads(Path("searched", "search.json").read_text())
    assert record["fresh"] == [1]
    chosen = next(each for each in record["candidates"] if each["chosen"])
    assert chosen["costs"]["cache_bytes"] <= float(most) < record["candidates"][0]["costs"]["cache_bytes"]
    assert 1 in record["path"]
    phase = ["--phases", "logits", "--trainable", "mixers", "--steps", "3", "--batch-size", "2"]
    said_by("distill", "searched", "parent", *task, *phase, "-o", "distilled")
    before, after = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("searched", "distilled"))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(".self_attn." in name for name in changed)
