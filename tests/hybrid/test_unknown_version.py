"""A version of transformers that nobody has tried has to decode with a cache as without, before anything is built."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import manticore
from manticore.components.cache_argument import CACHE_ARGUMENT
from manticore.components.transformers_version import END, FIRST, is_known
from manticore.errors import ManticoreError
from manticore.hybrid import unknown_version
from manticore.hybrid.modeling import ManticoreForCausalLM
from tests.conftest import gpt_neo, mamba


@pytest.fixture
def later_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.__version__", f"{END[0]}.{END[1]}.0")
    return tmp_path / "cache" / "transformers"


def lose_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was cached is gone at the next token; only its length is still known."""
    forward = ManticoreForCausalLM.forward

    @wraps(forward)
    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        cache = output.get(CACHE_ARGUMENT)
        for layer in cache.layers if cache is not None else ():
            if getattr(layer, "values", None) is not None:
                layer.values.zero_()
        return output

    monkeypatch.setattr(ManticoreForCausalLM, "forward", forgetful)


@pytest.mark.parametrize(
    ("version", "known"),
    [("5.17.0", True), ("5.23.1", True), ("5.25.0.dev0", False), ("5.16.9", False), ("6.0.0", False), ("new", False)],
)
def test_the_minor_version_decides(version: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", version)
    assert is_known() is known


def test_the_installed_version_is_known() -> None:
    assert is_known()
    assert FIRST < END


def test_one_that_decodes_right_is_taken_and_remembered(later_version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manticore.combine([gpt_neo(), mamba()], num_blocks=2)
    assert len(list(later_version.iterdir())) == 1
    monkeypatch.setattr(unknown_version, "_error_of_decoding", lambda: pytest.fail("checked again"))
    manticore.combine([gpt_neo(), mamba()], num_blocks=2)


def test_one_that_loses_the_cache_is_refused_before_anything_is_built(
    later_version: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as known:
        known.setattr("transformers.__version__", "5.23.0")
        manticore.combine([gpt_neo(), mamba()], num_blocks=2).save_pretrained(tmp_path / "hybrid")
    lose_the_cache(monkeypatch)
    for build in (
        lambda: manticore.combine(["nowhere", "nothing"], check=False),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "hybrid"),
    ):
        with pytest.raises(ManticoreError, match=r"transformers 5\.\d+\.0 is unknown here.*otherwise with a cache"):
            build()
    assert not later_version.exists()


def test_one_that_cannot_generate_is_refused_in_a_line(later_version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise TypeError("unexpected\nargument")

    monkeypatch.setattr(ManticoreForCausalLM, "prepare_inputs_for_generation", broken)
    with pytest.raises(ManticoreError, match=r"cannot generate with it \(TypeError: unexpected argument\)") as caught:
        manticore.combine([gpt_neo(), mamba()])
    assert "Fix: pip install 'transformers>=" in str(caught.value)
