"""Pretraining what ``manticore design`` and ``manticore scale`` leave: the configuration of a stack."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import manticore
from manticore.errors import ManticoreError
from manticore.stacks.configuration import StackConfig

DOCUMENTS = [f"the {n} of {n + 1} and {n + 2}\n" * 3 for n in range(60)]
TINY = {"text": DOCUMENTS, "vocab_size": 260, "length": 16, "steps": 4, "batch_size": 4, "cpu": True}
LAYERS = ["sa-1", "gmemless", ["sa-1", {}, {"features_of": 0, "features": ["keys", "values"]}]]


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    StackConfig(layers=LAYERS, hidden_size=16, vocab_size=23, max_position_embeddings=8).save_pretrained("small")
    return tmp_path


def test_a_stack_is_trained_with_a_tokenizer_and_an_interrupted_one_goes_on(desk):
    whole = manticore.pretrain("small", **TINY)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    assert model.config.layers == StackConfig(layers=LAYERS, hidden_size=16).layers
    assert model.config.vocab_size == len(tokenizer) == 260
    assert model.config.max_position_embeddings == 16
    record = json.loads((whole / "pretraining.json").read_text())
    assert record["tokens"] == 4 * 4 * 16
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(16)[None]).logits).all()
    # wherever the configuration lies, and whatever vocabulary it says
    StackConfig.from_pretrained("small", vocab_size=99).save_pretrained("other")
    assert manticore.pretrain(desk / "other", **TINY) == whole
    StackConfig.from_pretrained("small", hidden_size=24).save_pretrained("wider")
    assert manticore.pretrain("wider", **{**TINY, "steps": 0}) != manticore.pretrain("small", **{**TINY, "steps": 0})

    def stops(step, steps, row):
        if step == 2:
            raise KeyboardInterrupt

    again = {**TINY, "out": desk / "again", "cache": False}
    with pytest.raises(KeyboardInterrupt):
        manticore.pretrain("small", **again, progress=stops)
    folder = manticore.pretrain("small", **again)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("small", {"layers": 3}, "layers beside small, whose configuration has it"),
        ("small", {"width": 16}, "width beside small"),
        ("small", {"config": {"norm": "layer"}}, "config beside small"),
        ("empty", {}, "pretrain: empty: no config.json. Fix: give the folder of a stack"),
        ("gpt", {}, "pretrain: gpt: a gpt2 (expected a stack"),
        ("nowhere", {}, "is not a causal language model of transformers"),
        ("gpt_neo", {"layers": 2}, "gpt_neo needs width. Fix: "),
        ("gpt_neo", {}, "gpt_neo needs layers and width"),
    ],
)
def test_what_is_no_stack_or_has_other_sizes_is_refused_in_a_line(desk, family, changes, said):
    (desk / "empty").mkdir()
    (desk / "gpt").mkdir()
    (desk / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ManticoreError) as refused:
        manticore.pretrain(family, **{**TINY, **changes})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
