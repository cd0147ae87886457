"""What can be wrong with the storage of a search, each in one line."""

from __future__ import annotations

import sqlite3
import time

import optuna
import pytest
from tiny_search import make_hybrid, recall
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.printing import without_passwords
from manticore.search import storage
from manticore.search.search import search

SECRET = "s3cr:etword"
QUICK = {"method": "random", "candidates": 1, "batch_size": 16, "finetune_flops": 150_000_000, "cpu": True}
SETTINGS, INPUTS = {"lr": 1e-3, "blocks": 2}, {"weights": "a" * 64}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 1)


@pytest.fixture
def opened(tmp_path):
    """A study of ``SETTINGS`` and ``INPUTS`` in a folder, and how to ask for it again."""

    def ask(settings=SETTINGS, inputs=INPUTS, folder="out", name="mine", joins=True):
        url = f"sqlite:///{tmp_path / 'trials.db'}"
        connection = storage.Connection(url, tmp_path / folder, name)
        try:
            with storage.quiet():
                return connection.study(settings, inputs, joins=joins)
        finally:
            connection.close()

    ask().add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs={"request": "0-0 to mark 1"}))
    return ask


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"settings": {**SETTINGS, "lr": 2e-3}}, "was started with lr=0.001 (got 0.002)"),
        ({"settings": {**SETTINGS, "blocks": 4}}, "was started with blocks=2 (got 4)"),
        ({"inputs": {"weights": "b" * 64}}, "is of another model"),
        ({"folder": "elsewhere"}, "has its candidates in another folder"),
        ({"joins": False}, "holds results of an earlier search"),
    ],
)
def test_a_study_of_something_else_is_refused(opened, other, said):
    assert opened().user_attrs["key"]["settings"] == SETTINGS
    with pytest.raises(ManticoreError, match="Fix: ") as refused:
        opened(**other)
    assert said in str(refused.value)
    assert len(opened().trials) == 1


def test_without_a_name_every_search_has_its_own_study(opened):
    names = {opened(name=None).study_name, opened(name=None, settings={**SETTINGS, "lr": 2e-3}).study_name}
    assert len(names) == 2
    assert opened(name=None).study_name in names


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            f"postgresql://me:{SECRET}@127.0.0.1:1/trials",
            "postgresql+psycopg://127.0.0.1:1/trials: the storage does not",
        ),
        (f"postgresql://127.0.0.1:1/trials?user=me&password={SECRET}", "the storage does not answer"),
        (f"postgresql+nodriver://me:{SECRET}@host/trials", "pip install 'manticore-hybrids[postgres]'"),
        (f"mysql://me:{SECRET}@host/trials", "storage is in mysql"),
        (f"nonsense {SECRET}", "not the URL of a database"),
        ("sqlite://", "storage is in memory"),
        ("sqlite:///:memory:", "storage is in memory"),
        ("sqlite:////nowhere/at/all/trials.db", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_within_seconds_and_without_its_password(url, said, tmp_path):
    since = time.monotonic()
    with pytest.raises(ManticoreError) as refused:
        storage.Connection(url, tmp_path / "out", "mine").study(SETTINGS, INPUTS, joins=True)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - since < 60


@pytest.mark.parametrize("content", ["foreign", "damaged", "text", "nobody's"])
def test_a_file_of_something_else_or_a_damaged_one_is_left_as_it_is(content, opened, tmp_path):
    file, said = tmp_path / "trials.db", "is damaged, or no database"
    if content == "foreign":
        file.unlink()
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE bookmarks (url)")
        said = "is the database of something else"
    elif content == "damaged":
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) // 4))
    elif content == "text":
        file.write_text("nothing that SQLite knows\n" * 100)
    else:
        study = optuna.create_study(study_name="theirs", storage=f"sqlite:///{file}")
        study.add_trial(optuna.create_trial(value=1.0))
        said = "is not that of a search"
    before = file.read_bytes()
    with pytest.raises(ManticoreError, match="Fix: ") as refused:
        opened(name="theirs" if content == "nobody's" else "mine")
    assert said in str(refused.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ({"storage": "sqlite:////tmp/x.db"}, {}, "a storage needs an out"),
        (
            {"storage": "sqlite:////tmp/x.db", "out": "x", "max": {"decode_ms": 5.0}},
            {},
            "a limit on decode_ms is measured",
        ),
        ({}, {"WORLD_SIZE": "2", "RANK": "0"}, "trains each candidate in one process (got 2). Fix: --workers"),
        ({"storage": f"postgresql://me:{SECRET}@host/db", "method": "darts"}, {}, "method 'darts' has no storage"),
    ],
)
def test_workers_that_cannot_be_are_refused(options, environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = {name: value for name, value in QUICK.items() if "method" not in options or name == "cpu"}
    with pytest.raises(ManticoreError, match="Fix: ") as refused:
        search(make_hybrid(), recall(), **given | options)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


def test_workers_where_an_accelerator_does_the_work_are_refused(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    with pytest.raises(ManticoreError, match=r"one worker per accelerator.*--storage"):
        search(make_hybrid(), recall(), **QUICK | {"workers": 2, "cpu": False})


def test_a_recipe_refuses_a_password_and_a_command_that_fails_leaves_nothing(tmp_path):
    url = f"postgresql://me:{SECRET}@127.0.0.1:1/db"
    checked = CliRunner().invoke(app, ["check", "mad-recall", "search.method=race", f"search.storage={url}"])
    assert checked.exit_code == 2
    assert "search.storage: holds a password" in checked.stderr
    assert SECRET not in checked.stderr + checked.stdout


def test_passwords_are_left_out():
    texts = {
        f"at postgresql://me:{SECRET}@host:5/db, again": "at postgresql://me@host:5/db, again",
        "postgresql://host/db?user=me&password=abc&sslmode=x": "postgresql://host/db?user=me&password=***&sslmode=x",
        "postgresql://me@host/db": "postgresql://me@host/db",
        "sqlite:////disk/a@b.db": "sqlite:////disk/a@b.db",
    }
    assert {text: without_passwords(text) for text in texts} == texts


def test_the_library_of_studies_is_not_imported_where_nobody_searches():
    import subprocess
    import sys

    code = "import sys; from manticore.cli import app; import manticore; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert manticore.search is not None
