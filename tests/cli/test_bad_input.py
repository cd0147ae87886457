"""What a person can get wrong: each ends with one clear line and exit code 2, and changes nothing that stood before."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manticore.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
MAD = [
    *("-t", "mad/in-context-recall", "--task-option", "seq_len=16", "--task-option", "num_train_examples=32"),
    *("--task-option", "num_test_examples=16", "--task-option", "num_validation_examples=16"),
]


def tree(folder: Path) -> dict[str, str]:
    """Relative path → digest of every file, and of every folder's existence."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def desk(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a link to the checkpoints, and things that must stay as they are."""
    desk = tmp_path / "desk"
    desk.mkdir()
    for model in shelf.iterdir():
        shutil.copytree(model, desk / model.name)
    (desk / "taken").mkdir()
    (desk / "taken" / "precious.txt").write_text("mine")
    (desk / "empty.txt").write_text(" \n")
    (desk / "binary.dat").write_bytes(bytes(range(256)) * 64)
    (desk / "words.txt").write_text("\n".join(f"w{i % 40} w{(7 * i) % 46}" for i in range(4000)))
    monkeypatch.chdir(desk)
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return desk


def recipe(first: str, second: str, **sections: str) -> str:
    sections = {"combine": "{num_blocks: 2}", "align": "{length: 16}", **sections}
    lines = [
        "name: mine",
        f"components: [{{name: a, source: {first}}}, {{name: b, source: {second}}}]",
        "task: {name: text, options: {source: words.txt, length: 16}}",
        *(f"{name}: {text}" for name, text in sections.items()),
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["combine", "gpt", "bert", "-o", "new"], "bert: ", id="no causal LM"),
        pytest.param(["combine", "gpt", "mamba", "-o", "new"], "4 blocks, but", id="more blocks than layers"),
        pytest.param(["combine", "gpt", "-o", "new"], "one component", id="one component"),
        pytest.param(
            ["combine", "gpt", "foreign", "--num-blocks", "2", "-o", "new"], "different tokenizers", id="tokenizers"
        ),
        pytest.param(["combine", "gpt", "pickled", "--num-blocks", "2", "-o", "new"], "pickle", id="pickle"),
        pytest.param(["combine", "gpt", "remote", "--num-blocks", "2", "-o", "new"], "Python code", id="remote code"),
        pytest.param(["combine", "gpt", "nowhere/at-all", "-o", "new"], "nowhere/at-all: ", id="no such model"),
        pytest.param(["combine", "gpt", "taken", "-o", "new"], "taken: no config.json", id="no model in the folder"),
        pytest.param(["combine", "gpt", "mamba", "-o", "taken"], "--out taken: exists already", id="folder exists"),
        pytest.param(
            ["combine", "gpt", "mamba", "-o", "words.txt"], "--out words.txt: exists already", id="file exists"
        ),
        pytest.param(
            ["combine", "gpt", "mamba", "-o", "words.txt/new"], "words.txt is a file, not a folder", id="below a file"
        ),
        pytest.param(
            ["evaluate", "gpt", *MAD, "-o", "words.txt/a.json"], "words.txt is a file", id="result below a file"
        ),
        pytest.param(["run", "quickstart", "-o", "words.txt/a"], "words.txt is a file", id="run below a file"),
        pytest.param(["align", "gpt", "-o", "new"], "gpt: not a hybrid", id="no hybrid"),
        pytest.param(
            ["evaluate", "gpt", "-t", "text", "-o", "empty.txt"], "--out empty.txt: exists", id="result exists"
        ),
        pytest.param(
            ["evaluate", "gpt", "-t", "text", "--task-option", "source=empty.txt"], "empty.txt", id="empty text"
        ),
        pytest.param(
            ["evaluate", "gpt", "-t", "text", "--task-option", "source=binary.dat"], "binary.dat", id="binary text"
        ),
        pytest.param(
            ["evaluate", "gpt", "-t", "text", "--task-option", "source=words.txt", "--task-option", "length=65"],
            "65 tokens, but the model has 64 positions",
            id="more tokens than positions",
        ),
        pytest.param(["evaluate", "damaged", *MAD], "damaged: transformer.ln_f.bias holds NaN", id="NaN weights"),
        pytest.param(["evaluate", "sick", *MAD], "sick: mixing.", id="a hybrid with NaN weights"),
        pytest.param(["search", "sick", *MAD, "-o", "new"], "sick: mixing.", id="search in NaN weights"),
        pytest.param(
            ["combine", "gpt", "damaged", "--num-blocks", "2", "-o", "new"], "holds NaN", id="combine NaN weights"
        ),
        pytest.param(["generate", "gpt", "w1 w2", "--max-new-tokens", "64"], "make 66, but gpt", id="long answer"),
        pytest.param(
            ["search", "gpt", *MAD, "-o", "new", "--steps", "3", "--budget-flops", "1e9"],
            "both given",
            id="two budgets",
        ),
        pytest.param(
            ["finetune", "gpt", *MAD, "-o", "new", "--lr", "1e30", "--batch-size", "8", "--steps", "8"],
            "loss",
            id="NaN loss",
        ),
    ],
)
def test_a_verb_ends_with_one_line_and_leaves_everything_as_it_was(
    arguments: list[str], expected: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = tree(desk)
    result = CliRunner().invoke(app, arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (2, 1), result.output
    assert expected in errors[0]
    assert "Fix: " in errors[0]
    assert "Traceback" not in result.output
    assert tree(desk) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(recipe("gpt", "bert"), "is a BertForMaskedLM", id="no causal LM"),
        pytest.param(recipe("gpt", "mamba", combine="{num_blocks: 3}"), "3 blocks, but", id="blocks"),
        pytest.param(recipe("gpt", "foreign"), "different tokenizers", id="tokenizers"),
        pytest.param(recipe("gpt", "pickled"), "pickle", id="pickle"),
        pytest.param(recipe("gpt", "remote"), "Python code", id="remote code"),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(text: str, expected: str, desk: Path) -> None:
    (desk / "mine.yaml").write_text(text)
    before = tree(desk)
    result = CliRunner().invoke(app, ["run", "mine.yaml", "-o", "new"])
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (2, 1), result.output
    assert expected in errors[0]
    assert "Fix: " in errors[0]
    assert tree(desk) == before


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        pytest.param({"align": "{text: empty.txt, length: 16}"}, "empty.txt", id="empty text"),
        pytest.param({"align": "{text: binary.dat, length: 16}"}, "binary.dat", id="binary text"),
        pytest.param(
            {"align": "null", "search": "{method: darts, steps: 4, batch_size: 4, lr: 1e30}"}, "loss", id="NaN loss"
        ),
    ],
)
def test_a_run_that_fails_on_its_way_says_so_and_can_be_resumed(
    sections: dict[str, str], expected: str, desk: Path
) -> None:
    (desk / "mine.yaml").write_text(recipe("gpt", "mamba", **sections))
    before = tree(desk)
    result = CliRunner().invoke(app, ["run", "mine.yaml", "-o", "new"])
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (2, 1), result.output
    assert expected in errors[0]
    assert "Fix: " in errors[0]
    # the same recipe would end in the same error: it is to be edited first
    assert result.stdout.splitlines()[-1] == "next: edit mine.yaml, manticore run mine.yaml"
    assert '"status": "failed"' in (desk / "new" / "results.json").read_text()
    assert {name: digest for name, digest in tree(desk).items() if not name.startswith("new")} == before
    again = CliRunner().invoke(app, ["resume", "new"])
    assert again.exit_code == 2
    assert "combine: done before" in again.stdout


def test_a_run_does_not_write_into_a_folder_that_exists(desk: Path) -> None:
    (desk / "mine.yaml").write_text(recipe("gpt", "mamba"))
    before = tree(desk)
    result = CliRunner().invoke(app, ["run", "mine.yaml", "-o", "taken"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --out taken: exists already, nothing was changed. Fix: ")
    assert tree(desk) == before


def shell(arguments: list[str], **how: object) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from manticore.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, **how)


def test_a_file_that_grows_beyond_its_limit_is_one_line(desk: Path) -> None:
    before = tree(desk)
    finished = shell(
        ["combine", "gpt", "mamba", "--num-blocks", "2", "-o", "new"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.startswith("error: ")
    assert "Fix: " in finished.stderr
    assert tree(desk) == before


def test_a_full_disk_is_one_line(desk: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("no file systems may be mounted here")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from manticore.cli import main; main()"
    (desk / "main.py").write_text(code)
    verb = f"combine gpt mamba --num-blocks 2 -o {disk}/new"
    script = f"{mount} && touch {disk}/before && {sys.executable} main.py {verb}; code=$?; ls -A {disk}; exit $code"
    finished = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert finished.returncode == 2, finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the disk is full" in errors[0]
    assert "Traceback" not in finished.stderr
    assert finished.stdout.splitlines()[-1] == "before"
