"""Both names of the cache argument, on every supported version of transformers, and that generation uses the cache."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.cache_argument import CACHE_ARGUMENT, CACHE_NAMES, cache_argument, cache_in
from manticore.errors import ManticoreError

NAMES = [name for name in CACHE_NAMES if name != "cache_params"]
SIX = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def supernet(*families: str) -> manticore.ManticoreForCausalLM:
    hybrid = manticore.combine([tiny_model(name, seed=k) for k, name in enumerate(families)], num_blocks=2, check=False)
    hybrid.set_mixture_weights([[0.6, 0.4], [0.3, 0.7]])
    return hybrid


def stack(*layers: str) -> manticore.StackForCausalLM:
    torch.manual_seed(0)
    config = manticore.StackConfig(layers=list(layers), vocab_size=97, hidden_size=32, max_position_embeddings=64)
    return manticore.StackForCausalLM(config).eval()


MODELS = {
    "supernet": lambda: supernet("gpt_neo", "mamba"),
    "path": lambda: manticore.discretize(supernet("llama", "mamba2"), [1, 0]),
    # transformers takes the cache of recurrent layers alone for one that has no length
    "recurrent supernet": lambda: supernet("mamba", "falcon_mamba"),
    "stack": lambda: stack("mamba", "mh-attention", "swiglu"),
    "recurrent stack": lambda: stack("mamba", "mamba-2"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


@contextmanager
def without_advice_of_the_old_name() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_forward_pass_takes_and_returns_either_name(model: Any, ids: Tensor, name: str) -> None:
    whole = model(ids).logits
    with without_advice_of_the_old_name():
        prompt = model(ids[:, :5], use_cache=True)
        cache = prompt[CACHE_ARGUMENT]
        assert cache is prompt.past_key_values is cache_in(prompt)
        position_ids = torch.arange(5, 9)[None]
        rest = model(ids[:, 5:], position_ids=position_ids, use_cache=True, **{name: cache})
    torch.testing.assert_close(rest.logits, whole[:, 5:], atol=1e-5, rtol=0)
    assert cache_in(rest) is cache
    assert cache.get_seq_length() == 9


def test_two_caches_at_once_are_refused(model: Any, ids: Tensor) -> None:
    with pytest.raises(ManticoreError, match=r"name the same argument.* Fix: "):
        model(ids, past_key_values=model.new_cache(), cache=model.new_cache())


@torch.no_grad()
def test_generation_reads_every_token_once_and_writes_what_one_pass_says(model: Any, ids: Tensor) -> None:
    ids[0, :3] = 0
    mask = (ids != 0).long()
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        with without_advice_of_the_old_name():
            written = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **SIX)
    finally:
        hook.remove()
    assert read == [9, 1, 1, 1, 1, 1]
    uncached = model.generate(
        ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, use_cache=False, **SIX
    )
    assert torch.equal(written.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(written.logits), torch.stack(uncached.logits), atol=1e-5, rtol=0)


@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_generation_goes_on_with_a_cache_given_under_either_name(
    model: Any, ids: Tensor, name: str, only_new: bool
) -> None:
    first = model.generate(ids, return_dict_in_generate=True, **SIX)
    text = torch.cat([first.sequences, torch.full((2, 3), 7)], 1)
    cache = cache_in(first)
    given = text[:, cache.get_seq_length() :] if only_new else text
    got = model.generate(given, attention_mask=torch.ones_like(text), **{name: cache}, **SIX)
    assert torch.equal(got[:, -6:], model.generate(text, **SIX)[:, -6:])


def test_the_name_is_the_families_own() -> None:
    newest = CACHE_ARGUMENT == "cache"
    for family, name in {"llama": "past_key_values", "mamba": "cache_params"}.items():
        assert cache_argument(type(tiny_model(family)).forward) == ("cache" if newest else name)


@pytest.mark.parametrize("build", [lambda: supernet("gpt_neo", "mamba"), lambda: stack("mh-attention", "mamba")])
def test_gradient_checkpointing_has_no_cache(build: Any, ids: Tensor) -> None:
    model = build()
    cache = cache_in(model(ids, use_cache=True))
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.warns(UserWarning, match="use_cache is off"):
        assert cache_in(model(ids, use_cache=True)) is None
    with pytest.raises(ManticoreError, match=r"in training with gradient checkpointing.* Fix: "):
        model(ids[:, :1], cache=cache)
