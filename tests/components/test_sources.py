"""A mistyped folder is not a model on the hub: refused at once, with the folder that was meant."""

import socket

import pytest

from manticore.components.loading import load_config
from manticore.errors import ManticoreError


@pytest.fixture(autouse=True)
def nobody_asks_the_hub(monkeypatch, tmp_path):
    def refuse(*arguments, **named):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    for folder in ("my-gpt", "mamba", "runs/first/model", "models--cached"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/first/model/config.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("./my-gtp", "did you mean ./my-gpt?"),
        ("./mamba2/", "did you mean ./mamba?"),
        ("runs/first/modle", "did you mean runs/first/model?"),
        ("runs/frist", "did you mean runs/first?"),
        ("rnus/first/model", "did you mean runs?"),
        ("runs/nothing-like-it", "check the path"),
        ("no such/id", "check the path"),
        ("a/b/c", "check the path"),
        ("/nowhere/at/all", "check the path"),
    ],
)
def test_what_looks_like_a_path_is_one(name, suggested):
    with pytest.raises(ManticoreError) as caught:
        load_config(name)
    assert str(caught.value) == f"{name}: no such folder. Fix: {suggested}"


def test_a_home_that_the_shell_did_not_write_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ManticoreError, match=rf"^~/mamba: no such folder. Fix: write the path in full, {tmp_path}"):
        load_config("~/mamba")
    with pytest.raises(ManticoreError, match=r"Fix: did you mean ~/my-gpt\?"):
        load_config("~/my-gtp")


def test_the_folder_of_a_run_is_not_its_model():
    with pytest.raises(ManticoreError, match=r"runs/first: no config.json there. Fix: did you mean runs/first/model\?"):
        load_config("runs/first")


@pytest.mark.parametrize(
    ("name", "fix"), [("some-org/some-model", "check the id, or go online"), ("my-gtp", "did you mean my-gpt?")]
)
def test_an_id_that_the_hub_cannot_be_asked_for(name, fix, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ManticoreError) as caught:
        load_config(name)
    assert str(caught.value) == f"{name}: no such folder here, and the hub cannot be reached. Fix: {fix}"
