"""Checkpoints with different tokenizers on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import CODE, PROSE, byte_level
from typer.testing import CliRunner

from benchmarks.tiny_families import tiny_model
from manticore.cli.app import app
from manticore.report.results import read_results


@pytest.fixture
def parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, family, documents in (("gpt", "gpt_neo", CODE), ("mamba", "mamba", PROSE)):
        tokenizer = byte_level(documents)
        tiny_model(family, vocab_size=len(tokenizer)).save_pretrained(name)
        tokenizer.save_pretrained(name)
    return tmp_path


def test_what_was_matched_is_said(parents: Path) -> None:
    arguments = ["combine", "gpt", "mamba", "--num-blocks", "2", "--tokenizer", "gpt", "-o", "hybrid"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert f"mamba: rows for the {len(byte_level(CODE))} tokens of gpt: " in said
    assert "by the mean of pieces, 0 without a match (coverage 0." in said
    assert (parents / "hybrid" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["combine", "gpt", "mamba", "-o", "out"], "gpt and mamba have different tokenizers"),
        (["combine", "gpt", "mamba", "--tokenizer", "mamab", "-o", "out"], "Did you mean 'mamba'?"),
        (
            ["combine", "gpt", "mamba", "--tokenizer", "gpt", "--min-coverage", "0.99", "-o", "out"],
            "lower min_coverage",
        ),
        (["combine", "gpt", "mamba", "--tokenizer", "gpt", "--min-coverage", "2", "-o", "out"], "--min-coverage: "),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], reason: str, parents: Path) -> None:
    Path("words.txt").write_text("def f(x):\n    return x\n" * 400)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
    assert not (parents / "out").exists()


def test_compare_takes_names_and_ranks_different_tokenizers_by_bits_per_byte(parents: Path) -> None:
    Path("words.txt").write_text("def f(x):\n    return x\n" * 400)
    options = ["--task-option", "source=words.txt", "--task-option", "length=8", "--test-examples", "3"]
    quick = ["--budget-flops", "2e7", "--seeds", "0", "--batch-size", "4", "--learning-rates", "1e-3", "-o", "out"]
    result = CliRunner().invoke(app, ["compare", "first=gpt", "second=mamba", "-t", "text", *options, *quick])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "text: bits_per_byte (lower is better)" in said
    assert "as downloaded" in said
    assert "Tokenizers differ: each model reads the text with its own" in said
    assert "Scores are of 3 of the" in said
    assert "off budget" not in said
    results = read_results(parents / "out")
    assert results.compare is not None
    assert results.task is not None
    assert results.compare.models == ["first", "second"]
    assert (results.task.primary_metric, results.task.scored, results.task.bos) == ("bits_per_byte", 3, "")
    assert all(found.metrics["bits_per_byte"] for found in results.compare.untrained)
    # what comes next names a folder, not the name in the table
    assert "next: manticore finetune gpt " in said or "next: manticore finetune mamba " in said
