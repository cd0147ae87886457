"""Implementations of attention and experts that are asked for are those that run, and what the configuration says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid")
    parents = [tiny_model(family) for family in ("llama", "mamba", "mixtral")]
    manticore.combine(parents, num_blocks=2, check=False).save_pretrained(folder)
    return folder


def runs(hybrid: Any, what: str = "attn") -> list[str]:
    """What the components run, which their part of the configuration must say."""
    for k, config in enumerate(hybrid.config.components):
        assert hybrid.component(k).config is config
    return [getattr(config, f"_{what}_implementation") for config in hybrid.config.components]


# a Mamba has no attention, whatever is asked of all
@pytest.mark.parametrize("load", [AutoModelForCausalLM, ManticoreForCausalLM])
@pytest.mark.parametrize(
    ("asked", "of_all", "expected"),
    [
        ("eager", "eager", ["eager", "eager", "eager"]),
        ({"": "eager"}, "eager", ["eager", "eager", "eager"]),
        ("flex_attention", "flex_attention", ["flex_attention", "eager", "flex_attention"]),
        ({"component_0": "eager"}, "sdpa", ["eager", "eager", "sdpa"]),
        ({"": "eager", "component_2": "sdpa"}, "eager", ["sdpa", "eager", "sdpa"]),
    ],
)
def test_attention_asked_for_arrives(folder: Path, load: Any, asked: Any, of_all: str, expected: list[str]) -> None:
    loaded = load.from_pretrained(folder, attn_implementation=asked)
    assert loaded.config._attn_implementation == of_all
    assert runs(loaded) == expected
    assert runs(copy.deepcopy(loaded)) == expected
    small = manticore.discretize(loaded, [0, 0])
    assert small.config._attn_implementation == of_all
    assert small.component(0).config._attn_implementation == expected[0]


def test_experts_asked_for_arrive(folder: Path) -> None:
    for asked in ("eager", {"component_2": "eager"}):
        loaded = AutoModelForCausalLM.from_pretrained(folder, experts_implementation=asked)
        assert runs(loaded, "experts")[2] == "eager"
        assert manticore.discretize(loaded, [2, 2]).component(2).config._experts_implementation == "eager"


@torch.no_grad()
def test_it_is_what_runs(folder: Path, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.models.llama.modeling_llama as llama

    called: list[str] = []
    eager = llama.eager_attention_forward
    monkeypatch.setattr(llama, "eager_attention_forward", lambda *a, **k: called.append("eager") or eager(*a, **k))
    for asked in ("sdpa", "eager"):
        loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=asked)
        loaded(ids)
        assert bool(called) == (asked == "eager")


def test_it_can_be_changed_or_is_refused_whole(folder: Path) -> None:
    hybrid = AutoModelForCausalLM.from_pretrained(folder)
    hybrid.set_attn_implementation("eager")
    assert runs(hybrid) == ["eager"] * 3
    hybrid.set_attn_implementation("sdpa")
    assert runs(hybrid) == ["sdpa", "eager", "sdpa"]
    for wrong in ({"component_7": "eager"}, {"component_1": "sdpa"}):
        with pytest.raises(ManticoreError, match=r"attn_implementation: .*Fix: "):
            hybrid.set_attn_implementation(wrong)
        assert runs(hybrid) == ["sdpa", "eager", "sdpa"]


def test_what_a_component_does_not_have_is_refused(tmp_path: Path) -> None:
    hybrid = manticore.combine([tiny_model("gpt_neo"), tiny_model("llama")], num_blocks=2, check=False)
    before = runs(hybrid)
    with pytest.raises(ManticoreError, match=r"component 0 \(gpt_neo\) has eager attention only"):
        hybrid.set_attn_implementation("sdpa")
    assert runs(hybrid) == before
    hybrid.save_pretrained(tmp_path)
    with pytest.raises(ManticoreError, match=r"component 0 \(gpt_neo\) cannot be built: .*Fix: choose for each"):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation={"component_1": "sdpa"})
    assert runs(loaded) == ["eager", "sdpa"]
