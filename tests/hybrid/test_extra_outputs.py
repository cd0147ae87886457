"""A parent whose configuration asks for more outputs gives the logits and tokens that it gives without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.hybrid.classification import ManticoreForSequenceClassification

EAGER = {"attn_implementation": "eager"}
FLAGS: dict[str, dict[str, Any]] = {
    "router": {"output_router_logits": True},
    "hidden": {"output_hidden_states": True, "return_dict": False, "use_cache": False},
    "all": {
        "output_router_logits": True,
        "output_hidden_states": True,
        "output_attentions": True,
        "return_dict": False,
    },
}


@pytest.mark.parametrize(
    ("family", "flags"),
    [("mixtral", "router"), ("gpt_neo", "hidden"), ("mamba", "hidden"), ("qwen2_moe", "all")],
)
@torch.no_grad()
def test_flags_that_ask_for_outputs_change_nothing(family: str, flags: str, ids: Tensor, tmp_path: Path) -> None:
    kind = {} if family == "mamba" else EAGER
    parent = tiny_model(family, **kind, **FLAGS[flags])
    parent.save_pretrained(tmp_path / "parent")
    # some parents do not run with their flags at all
    without = tiny_model(family, **kind)
    expected = without(input_ids=ids, use_cache=False).logits
    tokens = without.generate(ids, max_new_tokens=3, min_new_tokens=3)
    supernet = manticore.combine([parent, tiny_model("gpt2")], num_blocks=2, check=False)
    supernet.set_mixture_weights([0, 0])
    supernet.save_pretrained(tmp_path / "hybrid")
    models = {
        "fresh": supernet,
        "discretized": manticore.discretize(supernet, [0, 0]),
        "loaded": AutoModelForCausalLM.from_pretrained(tmp_path / "hybrid"),
        "of a folder": manticore.combine([tmp_path / "parent", tmp_path / "parent"], num_blocks=2),
    }
    for name, model in models.items():
        # attention implementations are not part of what is saved, and add in another order
        exact = name in ("fresh", "discretized")
        torch.testing.assert_close(model(ids).logits, expected, atol=0.0 if exact else 1e-6, rtol=0, msg=name)
        assert torch.equal(model.generate(ids, max_new_tokens=3, min_new_tokens=3), tokens), name
    flags_before = parent.config.to_dict()
    classifier = ManticoreForSequenceClassification.from_causal_lm(parent, num_labels=3)
    assert classifier(ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 3)
    # somebody else's model is left as it is
    assert parent.config.to_dict() == flags_before


@torch.no_grad()
def test_flags_in_a_saved_hybrid_are_read_as_off(ids: Tensor, tmp_path: Path) -> None:
    hybrid = manticore.combine([tiny_model("mixtral"), tiny_model("mamba")], num_blocks=2, check=False)
    expected = hybrid(ids).logits
    # as earlier versions saved it
    hybrid.config.components[0].output_router_logits = True
    hybrid.save_pretrained(tmp_path)
    assert '"output_router_logits": true' in (tmp_path / "config.json").read_text()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)
