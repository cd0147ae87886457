"""Decoding with a hybrid's cache equals decoding without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from tiny_models import gpt_neo_config, mamba_config
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPTNeoXConfig,
    Lfm2Config,
    Mamba2Config,
    MistralConfig,
)

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.kernels.mamba import fast_scan

TOKENS = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ATTENTION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = {
    "gpt_neo": gpt_neo_config(width=32, layers=4, attention_types=[[["global", "local"], 2]], window_size=4, **TOKENS),
    "mamba": mamba_config(width=24, layers=6, **TOKENS),
    "gpt_neox": GPTNeoXConfig(max_position_embeddings=64, **ATTENTION, **TOKENS),
    "mamba2": Mamba2Config(
        hidden_size=48, num_hidden_layers=6, state_size=8, num_heads=6, head_dim=16, n_groups=1, chunk_size=8, **TOKENS
    ),
    "mistral": MistralConfig(num_key_value_heads=1, sliding_window=4, **ATTENTION, **TOKENS),
    "lfm2": Lfm2Config(
        num_key_value_heads=1,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        **ATTENTION,
        **TOKENS,
    ),
}
PAIRS = [("gpt_neo", "mamba"), ("gpt_neox", "mamba2"), ("mistral", "lfm2")]
GENERATE = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=PAIRS, ids="+".join)
def hybrids(request: pytest.FixtureRequest) -> list[ManticoreForCausalLM]:
    torch.manual_seed(0)
    parents = [AutoModelForCausalLM.from_config(CONFIGS[name]) for name in request.param]
    supernet = manticore.combine(parents, num_blocks=2)
    return [supernet, manticore.discretize(supernet, [1, 0]), manticore.discretize(supernet, [0, 1])]


def prompt() -> torch.Tensor:
    return torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_prompt_then_tokens_then_several_at_once_equal_one_pass(hybrids: list[ManticoreForCausalLM]) -> None:
    ids = prompt()
    positions = torch.arange(12).expand(2, -1)
    for hybrid in hybrids:
        whole = hybrid(ids).logits
        cache = hybrid.new_cache()
        pieces = [
            hybrid(ids[:, a:b], position_ids=positions[:, a:b], past_key_values=cache, use_cache=True).logits
            for a, b in ((0, 5), (5, 6), (6, 7), (7, 12))
        ]
        assert cache.get_seq_length() == 12
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scan", [nullcontext, fast_scan])
def test_a_long_prompt_then_eight_tokens_at_once(
    hybrids: list[ManticoreForCausalLM], scan: Callable[[ManticoreForCausalLM], AbstractContextManager[None]]
) -> None:
    ids = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(2))
    for hybrid in hybrids:
        with scan(hybrid):
            whole = hybrid(ids, use_cache=False).logits
            prompt = hybrid(ids[:, :32], use_cache=True)
            rest = hybrid(ids[:, 32:], past_key_values=prompt.past_key_values, use_cache=True).logits
        torch.testing.assert_close(torch.cat([prompt.logits, rest], 1), whole, atol=1e-5, rtol=0)


def test_greedy_and_beams_are_the_same_without_a_cache(hybrids: list[ManticoreForCausalLM]) -> None:
    for hybrid in hybrids:
        for beams in (1, 3):
            cached = hybrid.generate(prompt(), num_beams=beams, use_cache=True, **GENERATE)
            assert cached.shape == (2, 18)
            assert torch.equal(cached, hybrid.generate(prompt(), num_beams=beams, use_cache=False, **GENERATE))


def test_left_padding_does_not_change_what_is_generated(hybrids: list[ManticoreForCausalLM]) -> None:
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt()], 1)
    mask = (padded != 0).long()
    for hybrid in hybrids:
        plain = hybrid.generate(prompt(), **GENERATE)
        assert torch.equal(hybrid.generate(padded, attention_mask=mask, **GENERATE)[:, 3:], plain)


@torch.no_grad()
def test_repeating_and_selecting_sequences(hybrids: list[ManticoreForCausalLM]) -> None:
    ids = prompt()
    position = torch.full((2, 1), 11)
    for hybrid in hybrids:
        expected = hybrid(ids).logits[:, -1]
        cache = hybrid(ids[:, :11], use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        got = hybrid(ids[[1, 0], 11:], position_ids=position, past_key_values=cache, use_cache=True).logits[:, -1]
        torch.testing.assert_close(got, expected[[1, 0]], atol=1e-5, rtol=0)


@torch.no_grad()
def test_dropped_layers_hold_nothing(hybrids: list[ManticoreForCausalLM]) -> None:
    supernet, small, _ = hybrids
    assert sum(not dummy for dummy in small.new_cache().is_dummy) < sum(not d for d in supernet.new_cache().is_dummy)


def test_a_component_whose_attention_layers_were_all_dropped() -> None:
    # its masks are still derived from its cache
    torch.manual_seed(0)
    supernet = manticore.combine([tiny_model("nemotron_h"), tiny_model("mamba")], num_blocks=2)
    small = manticore.discretize(supernet, [0, 1])
    cached = small.generate(prompt(), use_cache=True, **GENERATE)
    assert torch.equal(cached, small.generate(prompt(), use_cache=False, **GENERATE))


@torch.no_grad()
def test_reset_starts_anew(hybrids: list[ManticoreForCausalLM]) -> None:
    hybrid = hybrids[0]
    cache = hybrid(prompt(), use_cache=True).past_key_values
    cache.reset()
    assert cache.get_seq_length() == 0


def test_foreign_and_fixed_size_caches_are_refused(hybrids: list[ManticoreForCausalLM]) -> None:
    hybrid = hybrids[0]
    with pytest.raises(manticore.ManticoreError, match=r"DynamicCache.*expected a HybridCache"):
        hybrid(prompt(), past_key_values=DynamicCache(config=hybrid.config.component_0), use_cache=True)
    with pytest.raises(manticore.ManticoreError, match="cache_implementation 'static'"):
        hybrid.generate(prompt(), cache_implementation="static", **GENERATE)
