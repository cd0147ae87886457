"""Pretraining as a verb, and what the verbs after it say of text and vocabularies."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.training.pretrain import pretrain, read_record

MAD = ["--task", "mad/in-context-recall", "--task-option", "seq_len=16", "--task-option", "num_train_examples=8"]
MAD += ["--task-option", "num_test_examples=8", "--task-option", "num_validation_examples=8"]
TINY = ["--layers", "1", "--width", "32", "--steps", "2", "--batch-size", "2", "--length", "16", "--vocab-size", "280"]


def verb(*words: str) -> list[str]:
    """The lines of a verb that must succeed."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    rows = [{"title": str(i), "body": f"def f{i}(x):\n    return x + {i}\n" * 5} for i in range(60)]
    (tmp_path / "my text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_verb_trains_prints_the_held_out_loss_and_suggests_what_runs(desk: Path) -> None:
    text = ["--text", "my text.jsonl", "--text-column", "body"]
    said = verb("pretrain", "gpt_neo", *TINY, *text, "-o", "gpt")
    record = read_record("gpt")
    assert f"held-out loss {record['heldout']['loss']:.3f} after {record['tokens']:,} tokens" in said
    assert said[-2] == "wrote gpt"
    options = "--task-option 'source=my text.jsonl' --task-option text_column=body --task-option length=16"
    assert said[-1] == f"next: manticore evaluate gpt --task text {options}"
    assert verb(*shlex.split(said[-1].removeprefix("next: manticore ")))[2].startswith("loss ")
    # the verb is the function
    assert manticore.pretrain is pretrain
    settings = {"layers": 1, "width": 32, "batch_size": 2, "length": 16, "vocab_size": 280}
    again = manticore.pretrain("gpt_neo", **settings, steps=2, text="my text.jsonl", text_column="body")
    assert (again / "model.safetensors").read_bytes() == (desk / "gpt" / "model.safetensors").read_bytes()


def test_a_stopped_one_says_how_to_go_on(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    words = ["pretrain", "gpt_neo", *TINY, "--text", "my text.jsonl", "--text-column", "body", "-o", "gpt"]
    monkeypatch.setattr(manticore, "pretrain", stop)
    monkeypatch.setattr("sys.argv", ["manticore", *words])
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 130
    assert result.stdout.splitlines()[-1] == f"next: {shlex.join(['manticore', *words])}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["pretrain", "gpt_neo", "--width", "32", "-o", "new"],
            "gpt_neo needs layers. Fix: give both, such as 4 and 64",
        ),
        (["pretrain", "gpt_neoo", *TINY, "-o", "new"], "family 'gpt_neoo' is not a causal language model"),
        (["pretrain", "gpt_neo", *TINY, "--text", "my text.jsonl", "-o", "new"], "2 columns of text and none called"),
        (["pretrain", "gpt_neo", *TINY, "-o", "my text.jsonl"], "exists already"),
    ],
)
def test_mistakes_are_one_line(words: list[str], expected: str, desk: Path) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (desk / "new").exists()


def test_after_align_comes_text_and_a_replaced_vocabulary_is_said(shelf: Path, desk: Path) -> None:
    shutil.copytree(shelf / "gpt", desk / "gpt")
    (desk / "words.txt").write_text("\n".join(f"w{i % 40} w{(7 * i) % 46}" for i in range(1000)))
    verb("combine", "gpt", "gpt", "--num-blocks", "2", "-o", "hybrid")
    said = verb("align", "hybrid", "--text", "words.txt", "--tokens", "512", "--length", "16", "-o", "aligned")
    # no more tokens than the model has positions
    words = "--task text --task-option source=words.txt --task-option length=64"
    assert said[-1] == f"next: manticore search aligned {words} -o aligned-searched"
    replaced = "has a vocabulary of its own, 16 tokens: the 48 pretrained embeddings and the head are replaced"
    said = verb("finetune", "gpt", *MAD, "--steps", "1", "--batch-size", "2", "-o", "tuned")
    assert any(line.startswith("gpt: mad/in-context-recall ") and replaced in line for line in said)
    assert not any(replaced in line for line in verb("evaluate", "gpt", "--task", "text", "--task-option",
                                                     "source=words.txt", "--task-option", "length=16"))  # fmt: skip
