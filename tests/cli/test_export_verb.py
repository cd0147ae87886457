"""The verb that writes a hybrid as a checkpoint of its family: what it says, and what it refuses before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import byte_level
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.cli.app import app


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A supernet of two models of one family, and a path through it."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_level()
    models = [tiny_model("llama", seed=seed, vocab_size=len(tokenizer)) for seed in (1, 2)]
    hybrid = manticore.combine(models, num_blocks=2, check=False, tokenizer=tokenizer)
    hybrid.save_pretrained("hybrid")
    manticore.discretize(hybrid, [0, 1]).save_pretrained("small")
    return tmp_path


def test_it_writes_a_checkpoint_and_suggests_what_runs(desk: Path) -> None:
    result = CliRunner().invoke(app, ["export", "small", "-o", "served"])
    assert result.exit_code == 0, result.output
    said = result.stdout.splitlines()
    assert said[1] == "LlamaForCausalLM, 4 layers; logits as the hybrid's to within 0"
    assert said[-2:] == ["wrote served", "next: manticore evaluate served --task text"]
    assert type(AutoModelForCausalLM.from_pretrained("served")).__name__ == "LlamaForCausalLM"
    # the folder that is there now is left alone
    again = CliRunner().invoke(app, ["export", "small", "-o", "served"])
    assert again.exit_code == 2
    assert "--out served: exists already, nothing was changed" in again.output


def test_a_supernet_is_refused_in_one_line(desk: Path) -> None:
    result = CliRunner().invoke(app, ["export", "hybrid", "-o", "served"])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("error: export: the hybrid is a supernet of 2 components")
    assert not (desk / "served").exists()
