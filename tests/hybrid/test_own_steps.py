"""Families that take steps of their own in ``generate`` write in a hybrid what they write alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import FAMILIES, tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM

SWITCH = 16
FACTORS = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
PLAIN: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
FAMILIES.setdefault("phimoe", {**FAMILIES["phi3"], "num_local_experts": 4, "num_experts_per_tok": 2})


def switching(family: str) -> PreTrainedModel:
    """Turns its keys otherwise from the seventeenth token on, by factors that change what it writes."""
    scaling = {**FACTORS, "original_max_position_embeddings": SWITCH}
    if family == "phimoe":
        scaling |= {"short_mscale": 1.0, "long_mscale": 1.5}
    model = tiny_model(family, original_max_position_embeddings=SWITCH, rope_parameters={**scaling, "rope_theta": 1e4})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else None
    return model


def prompt(seed: int, tokens: int = 10) -> Tensor:
    return torch.randint(3, 97, (1, tokens), generator=torch.Generator().manual_seed(seed))


def hybrid_of(model: PreTrainedModel) -> ManticoreForCausalLM:
    hybrid = manticore.combine([model, tiny_model("mamba")], num_blocks=2, check=False)
    hybrid.set_mixture_weights([0, 0])
    return hybrid


@pytest.mark.parametrize("family", ["phi3", "phimoe"])
def test_text_that_crosses_the_switch_is_the_parents(family: str) -> None:
    parent = switching(family)
    hybrid = hybrid_of(parent)
    for seed in range(4):
        own = parent.generate(prompt(seed), max_new_tokens=14, **PLAIN)
        for model in (hybrid, manticore.discretize(hybrid, [0, 0])):
            assert torch.equal(model.generate(prompt(seed), max_new_tokens=14, **PLAIN), own)
            assert torch.equal(model.generate(prompt(seed), max_new_tokens=14, use_cache=False, **PLAIN), own)
        beams = parent.generate(prompt(seed), max_new_tokens=10, num_beams=2, **PLAIN)
        assert torch.equal(hybrid.generate(prompt(seed), max_new_tokens=10, num_beams=2, **PLAIN), beams)


def test_a_soft_hybrid_and_a_family_that_forgets_it_write_the_same_with_and_without_a_cache() -> None:
    # Llama's own generate goes on with what it has cached
    for family in ("phi3", "llama"):
        hybrid = manticore.combine([switching(family), tiny_model("mamba")], num_blocks=2, check=False)
        for seed in range(3):
            cached = hybrid.generate(prompt(seed), max_new_tokens=12, **PLAIN)
            assert torch.equal(cached, hybrid.generate(prompt(seed), max_new_tokens=12, use_cache=False, **PLAIN))


@torch.no_grad()
def test_a_cache_from_before_the_switch_is_not_continued_beyond_it() -> None:
    hybrid = hybrid_of(switching("phi3"))
    ids = prompt(0, 20)
    cache = hybrid(ids[:, :14], use_cache=True).past_key_values
    hybrid(ids[:, 14:16], past_key_values=cache)
    with pytest.raises(ManticoreError, match=r"component 0 \(phi3\) changes after 16 tokens, 16 are cached.*Fix: "):
        hybrid(ids[:, 16:17], past_key_values=cache)
    # beyond it, and at the vertex of another component, everything goes on
    cache = hybrid(ids[:, :18], use_cache=True).past_key_values
    rest = hybrid(ids[:, 18:], past_key_values=cache).logits
    torch.testing.assert_close(rest, hybrid(ids).logits[:, 18:], atol=1e-4, rtol=0)
    hybrid.set_mixture_weights([1, 1])
    cache = hybrid(ids[:, :14], use_cache=True).past_key_values
    hybrid(ids[:, 14:], past_key_values=cache)


def test_a_conversation_goes_on_across_the_switch() -> None:
    hybrid = hybrid_of(switching("phi3"))
    first = hybrid.generate(prompt(0), max_new_tokens=4, return_dict_in_generate=True, **PLAIN)
    text = torch.cat([first.sequences, prompt(1, 5)], 1)
    got = hybrid.generate(text, past_key_values=first.past_key_values, max_new_tokens=5, **PLAIN)
    assert torch.equal(got, hybrid.generate(text, max_new_tokens=5, use_cache=False, **PLAIN))


def test_steps_that_are_not_known_are_refused(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid = hybrid_of(tiny_model("llama"))
    hybrid.generate(ids, max_new_tokens=2)

    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(LlamaForCausalLM, self).prepare_inputs_for_generation(*args, **kwargs)

    # as another version of transformers may have it
    monkeypatch.setattr(LlamaForCausalLM, "prepare_inputs_for_generation", own)
    with pytest.raises(ManticoreError, match=r"component 0 \(llama\) has a prepare_inputs_for_generation of its own"):
        hybrid.generate(ids, max_new_tokens=2)
    hybrid.set_mixture_weights([1, 1])
    hybrid.generate(ids, max_new_tokens=2)
