"""Gradient checkpointing beside a cache, and lower precision with a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hybrids import MIXINGS, Build, at_random_weights
from torch import Tensor
from transformers import AutoModelForCausalLM

import manticore
from manticore.errors import ManticoreError


def test_gradient_checkpointing_switches_the_cache_off(build: Build, ids: Tensor) -> None:
    hybrid = at_random_weights(build()).train()
    expected = _gradients(hybrid, ids)
    cache = hybrid.eval()(ids, use_cache=True).past_key_values
    hybrid.train().gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.warns(UserWarning, match="use_cache is off"):
        output = hybrid(ids, labels=ids, use_cache=True)
    assert output.past_key_values is None
    saving = _gradients(hybrid, ids)
    assert saving.keys() == expected.keys()
    assert all(torch.equal(saving[name], expected[name]) for name in expected)
    with pytest.raises(ManticoreError, match=r"in training with gradient checkpointing.* Fix: "):
        hybrid(ids[:, :1], past_key_values=cache)


def _gradients(hybrid: Any, ids: Tensor) -> dict[str, Tensor]:
    hybrid.zero_grad(set_to_none=True)
    hybrid(ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in hybrid.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("path", [None, [0, 1, 1], [1, 0, 0]])
@torch.no_grad()
def test_loaded_in_bfloat16_a_cache_changes_rounding_only(
    path: list[int] | None, build: Build, ids: Tensor, tmp_path: Any
) -> None:
    hybrid = at_random_weights(build())
    if path is not None:
        hybrid = manticore.discretize(hybrid, path)
    hybrid.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.component(1).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in half.mixing.mixture_parameters())
    torch.testing.assert_close(half.mixture_weights, hybrid.mixture_weights, atol=0, rtol=0)
    if path == [0, 1, 1]:
        # the Mamba keeps its residual stream in float32
        assert half(ids, output_hidden_states=True).hidden_states[-1].dtype == torch.float32
    whole = half(ids).logits.float()
    cache, pieces = half.new_cache(), []
    for start, stop in ((0, 6), (6, 7), (7, 11)):
        positions = torch.arange(start, stop)[None]
        pieces.append(half(ids[:, start:stop], position_ids=positions, past_key_values=cache).logits.float())
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=float(whole.abs().max()) * 3e-2, rtol=0)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_converted_in_memory_mixture_weights_stay_as_they_are(
    mixing: str, precision: torch.dtype, build: Build, ids: Tensor, tmp_path: Any
) -> None:
    # thirds do not sum to 1 in half precision
    hybrid = build(mixing, components=3)
    weights = hybrid.mixture_weights
    hybrid.to(precision)
    assert hybrid.component(0).dtype == next(hybrid.mixing.projectors.parameters()).dtype == precision
    assert torch.equal(hybrid.mixture_weights.float(), weights)
    assert hybrid(ids).logits.isfinite().all()
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.component(0).dtype == precision
    assert torch.equal(loaded.mixture_weights.float(), weights)
    loaded.set_mixture_weights(loaded.mixture_weights)
