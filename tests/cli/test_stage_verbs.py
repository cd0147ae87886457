"""The stages one at a time, from two checkpoints to a scored hybrid, each verb taking what the one before it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from manticore.cli.app import app

TASK = ["--task", "text", "--task-option", "source=words.txt", "--task-option", "length=16"]


def do(*arguments: str) -> list[str]:
    """Run a verb that must succeed; what it printed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_the_stages_lead_from_checkpoints_to_a_scored_hybrid(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gpt", "mamba"):
        shutil.copytree(shelf / name, tmp_path / name)
    Path("words.txt").write_text("\n".join(f"w{i % 40} w{(7 * i) % 46}" for i in range(4000)))

    said = do("combine", "gpt", "mamba", "--num-blocks", "2", "-o", "hybrid")
    assert said[-2:] == ["wrote hybrid", "next: manticore align hybrid --length 64 -o hybrid-aligned"]
    do("align", "hybrid", "--text", "words.txt", "--tokens", "1024", "--length", "16", "-o", "aligned")
    assert len(json.loads(Path("aligned/alignment.json").read_text())["translations"]) == 4
    do("search", "aligned", *TASK, "--method", "gaea", "--steps", "3", "--batch-size", "4", "-o", "searched")
    assert len(Path("searched/search/mixture_weights.csv").read_text().splitlines()) == 1 + 2 * 3
    said = do("discretize", "searched", "--path", "1,0", "-o", "small")
    assert "path [1, 0]" in said
    do("finetune", "small", *TASK, "--steps", "3", "--batch-size", "4", "--test-examples", "8", "-o", "tuned")
    said = do("evaluate", "tuned", *TASK, "--max-examples", "8", "-o", "scores.json")
    scores = json.loads(Path("scores.json").read_text())["metrics"]
    assert scores == pytest.approx(json.loads(Path("tuned/finetune.json").read_text())["metrics"])
    assert said[-2] == "wrote scores.json"
    said = do("generate", "tuned", "w1 w2 w3", "--max-new-tokens", "4")
    assert said[0].startswith("w1 w2 w3 ")

    said = do(
        "compare", "gpt", "small", *TASK, "--budget-flops", "2e7", "--seeds", "0", "--batch-size", "4", "-o", "table"
    )
    rows = json.loads(Path("table/results.json").read_text())["compare"]["rows"]
    assert [row["model"] for row in rows] == ["gpt", "small"]
    assert any("small" in line for line in said)
    said = do("share", "tuned")
    assert said[-3:] == [
        "added loading_manticore.py, config.json, README.md, blocks.png",
        "wrote tuned",
        "next: hf upload YOUR-NAME/tuned tuned",
    ]
    card = Path("tuned/README.md").read_text()
    assert "| finetune | text | 3 |" in card
    assert "source=words.txt, length=16" in card
    assert AutoModelForCausalLM.from_pretrained("tuned").is_discretized


def test_a_task_with_classes_from_a_hybrid_to_a_scored_classifier(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"min_length": 4, "max_length": 12, "num_train": 32, "num_validation": 8, "num_test": 8}
    task = ["--task", "listops-short"]
    for name, value in options.items():
        task += ["--task-option", f"{name}={value}"]
    gpt, mamba = str(shelf / "gpt"), str(shelf / "mamba")
    do("combine", gpt, mamba, "--num-blocks", "2", *task, "-o", "hybrid")
    do("search", "hybrid", *task, "--method", "darts", "--steps", "2", "--batch-size", "8", "-o", "searched")
    do("discretize", "searched", "--path", "1,0", "-o", "small")
    do("finetune", "small", *task, "--steps", "2", "--batch-size", "8", "-o", "tuned")
    do("finetune", mamba, *task, "--steps", "2", "--batch-size", "8", "-o", "parent")
    for model in ("tuned", "parent"):
        do("evaluate", model, *task, "-o", f"{model}.json")
        scores = json.loads(Path(f"{model}.json").read_text())["metrics"]
        assert scores == pytest.approx(json.loads(Path(f"{model}/finetune.json").read_text())["metrics"])
    do("compare", "tuned", "parent", *task, "--budget-flops", "2e7", "--seeds", "0", "--batch-size", "8", "-o", "table")
    for arguments in (["evaluate", mamba, *task], ["generate", "tuned", "w1"], ["align", "searched", "-o", "x"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert "Fix:" in result.output
