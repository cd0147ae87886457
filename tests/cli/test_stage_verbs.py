"""The stages one at a time, from two checkpoints to a scored hybrid, each verb taking what the one before it wrote."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.tasks.task import Task, load_task
from manticore.training.budget import flops_per_step

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
    do("discretize", "aligned", "--weights-from", "small", "-o", "programmed")
    assert AutoModelForCausalLM.from_pretrained("programmed").config.path == [1, 0]
    programmed = ["--method", "darts", "--weights-from", "searched", "--mixture-lr", "1e-7", "--steps", "1"]
    do("search", "aligned", *TASK, *programmed, "--batch-size", "4", "-o", "again")
    found, again = (json.loads(Path(f"{name}/search.json").read_text())["weights"] for name in ("searched", "again"))
    assert again == [pytest.approx(row, abs=1e-4) for row in found]
    said = do(
        "distill",
        "small",
        "aligned",
        *TASK,
        "--steps",
        "4",
        "--batch-size",
        "4",
        "--test-examples",
        "8",
        "-o",
        "taught",
    )
    assert said[-1] == f"next: manticore finetune taught {shlex.join(TASK)} -o taught-tuned"
    record = json.loads(Path("taught/distill.json").read_text())
    assert [(phase["name"], phase["steps"]) for phase in record["phases"]] == [("blocks", 1), ("logits", 3)]
    assert record["teacher"] == "aligned"
    do("finetune", "small", *TASK, "--steps", "3", "--batch-size", "4", "--test-examples", "8", "-o", "tuned")
    said = do("evaluate", "tuned", *TASK, "--max-examples", "8", "-o", "scores.json")
    scores = json.loads(Path("scores.json").read_text())["metrics"]
    assert scores == pytest.approx(json.loads(Path("tuned/finetune.json").read_text())["metrics"])
    assert said[-2] == "wrote scores.json"
    said = do("generate", "tuned", "w1 w2 w3", "--max-new-tokens", "4")
    assert said[0].startswith("w1 w2 w3 ")

    said = do(
        "compare",
        "gpt",
        "small",
        *TASK,
        "--budget-flops",
        "2e7",
        "--seeds",
        "0",
        "--batch-size",
        "4",
        "--learning-rates",
        "1e-3",
        "-o",
        "table",
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


def test_what_a_search_has_trained_goes_on_directly_and_by_way_of_discretize(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    task = ["--task", "mad/in-context-recall", "--task-option", "seq_len=12", "--task-option", "num_train_examples=64"]
    task += ["--task-option", "num_test_examples=8", "--task-option", "num_validation_examples=8"]
    hybrid = manticore.combine([str(shelf / "gpt"), str(shelf / "mamba")], num_blocks=2)
    hybrid.with_vocabulary(16)
    hybrid.save_pretrained("hybrid")
    unit = 12 * max(flops_per_step(manticore.discretize(hybrid, [k, k]), 4, 11) for k in range(2))

    said = do("search", "hybrid", *task, "--finetune-flops", str(unit), "--batch-size", "4", "-o", "searched")
    found = json.loads(Path("searched/search.json").read_text())
    assert f"path {found['path']}" in said
    assert said[-1].startswith("next: manticore finetune searched --task mad/in-context-recall")
    assert {path.name for path in Path("searched/begun").glob("checkpoint-*")}
    said = do("discretize", "searched", "-o", "small")
    assert f"path {found['path']}" in said
    metrics = []
    for model in ("searched", "small"):
        do("finetune", model, *task, "--batch-size", "4", "-o", f"{model}-tuned")
        record = json.loads(Path(f"{model}-tuned/finetune.json").read_text())
        assert record["flops"] <= unit
        assert record["steps"] >= 12
        metrics.append(record["metrics"])
    assert metrics[0] == metrics[1]
    assert "anew" not in caplog.text
    said = do(
        "compare",
        "small",
        *task,
        "--budget-flops",
        str(unit),
        "--seeds",
        "0",
        "--batch-size",
        "4",
        "--learning-rates",
        "1e-3",
        "-o",
        "table",
    )
    assert any("small was trained on a task by a search" in line for line in said)
    do("finetune", "searched", *task, "--batch-size", "4", "--lr", "1e-2", "-o", "other")
    assert "starts anew" in caplog.text
    assert manticore.finetune("searched", task_of(task), batch_size=4).metrics == metrics[0]


def task_of(words: list[str]) -> Task:
    """The task of a command's words."""
    options = dict(word.split("=") for word in words[3::2])
    return load_task(words[1], **{name: int(value) for name, value in options.items()})


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
    do("compare", "tuned", "parent", *task, "--budget-flops", "2e7", "--seeds", "0", "--batch-size", "8",
        "--learning-rates", "1e-3", "-o", "table",
    )  # fmt: skip
    for arguments in (["evaluate", mamba, *task], ["generate", "tuned", "w1"], ["align", "searched", "-o", "x"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert "Fix:" in result.output
