"""What layers share: weights on their own inputs, and features that a lower layer has computed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_stacks import tiny_stack, tokens
from transformers import AutoModelForCausalLM
from twins import TWINS

from manticore.errors import ManticoreError
from manticore.stacks.catalogue import family, shareable
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackCache, StackForCausalLM
from manticore.stacks.sizes import cache_bytes, layer_parameters, layer_sizes, state_bytes

HEADS = {"num_heads": 4}
KV = {"features": ["keys", "values"]}
SHARED: list[Any] = [
    ["mh-attention", HEADS],
    ["mamba", {"state_size": 3}],
    ["mh-attention", HEADS, {"weights_of": 0}],
    ["grouped-query-attention", HEADS, {"features_of": 0, **KV}],
    ["mh-attention", HEADS, {"weights_of": 2, "features_of": 3, **KV}],
    "swiglu",
    ["swiglu", {}, {"weights_of": 5}],
    ["mamba", {"state_size": 3}, {"weights_of": 1}],
]
"""Weights of weights, features of features, and both at once."""


def held(cache: StackCache) -> int:
    """Numbers that a cache holds."""
    found = 0
    for layer in cache.layers:
        states = [state for name in ("conv_states", "recurrent_states") for state in getattr(layer, name, {}).values()]
        held = [getattr(layer, "keys", None), getattr(layer, "values", None), *states]
        found += sum(each.numel() for each in held if each is not None)
    return found


def continued(model: StackForCausalLM, ids: torch.Tensor, cuts: list[int], **given: Any) -> tuple[torch.Tensor, Any]:
    """Logits with a cache, in pieces, and the cache."""
    cache = StackCache(model.config)
    mask = given.get("attention_mask")
    with torch.no_grad():
        parts = [
            model(
                ids[:, start:stop],
                attention_mask=None if mask is None else mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
            ).logits
            for start, stop in pairwise(cuts)
        ]
    return torch.cat(parts, 1), cache


def test_shared_weights_are_one_and_shared_keys_are_the_lower_layers() -> None:
    model, ids = tiny_stack(*SHARED), tokens(1, 9)
    layers: Any = model.model.layers
    with torch.no_grad():
        hidden = model.model.embed_tokens(ids[0])
        inputs: list[torch.Tensor] = []
        for index, (layer, name) in enumerate(zip(layers, model.config.layer_names)):
            inputs.append(layer.norm(hidden))
            if index in (3, 4):
                # the queries of this layer, on the keys and values that layer 0 made of its own input
                q, out = layer.mixer.q_proj(inputs[index]), layer.mixer.out_proj
                hidden = hidden + out(_attended(layers[0].mixer, q, inputs[0]))
            else:
                hidden = hidden + TWINS[name](layer.mixer, inputs[index])
        expected = model.lm_head(model.model.norm(hidden))
    torch.testing.assert_close(model(ids, use_cache=False).logits[0], expected, rtol=1e-9, atol=1e-11)
    assert layers[4].mixer is layers[2].mixer is layers[0].mixer
    assert not hasattr(layers[3].mixer, "k_proj")


def _attended(maker: Any, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The twin of attention with given queries, before its last map."""

    class Given:
        def __getattr__(self, name: str) -> Any:
            return {"q_proj": lambda _: q, "out_proj": lambda y: y}.get(name) or getattr(maker, name)

    return TWINS["mh-attention"](Given(), x)


@pytest.mark.parametrize("cuts", [[0, 5, 6, 7, 20], [0, 17, 18, 20]])
def test_what_is_shared_continues_from_a_cache_that_holds_it_once(cuts: list[int]) -> None:
    model, ids = tiny_stack(*SHARED), tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False).logits
    parts, cache = continued(model, ids, cuts, attention_mask=mask)
    torch.testing.assert_close(parts[0, 3:], whole[0, 3:], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-9, atol=1e-11)
    assert 2 * held(cache) == cache_bytes(model.config, 20, batch=2)


def test_what_is_shared_counts_once() -> None:
    model = tiny_stack(*SHARED)
    rows = layer_sizes(model.config, 10)
    assert layer_parameters(model.config) == sum(p.numel() for p in model.model.layers.parameters())
    assert [row.parameters for row in rows[-2:]] == [16, 16]
    # queries and the map back, with the norm
    assert rows[3].parameters == 2 * 16 * 17 + 16
    assert [row.state for row in rows] == [320, 96, 320, 0, 0, 0, 0, 96]
    assert rows[3].flops == rows[0].flops - 2 * 10 * 2 * 16 * 16
    assert state_bytes(model.config, 10) == 2 * (320 + 96 + 320 + 96)


def test_the_published_cache_of_a_transformer() -> None:
    config = StackConfig(layers=["mh-attention", "swiglu"] * 24, hidden_size=2048, max_position_embeddings=4096)
    assert cache_bytes(config, 4096) == 805_306_368
    assert state_bytes(config, 4096) == 805_306_368
    shared = [["mh-attention", {}], ["mh-attention", {}, {"features_of": 0, **KV}]]
    halved = StackConfig(layers=shared * 1, hidden_size=2048)
    assert cache_bytes(halved, 4096, batch=3) == 3 * 805_306_368 // 24


def test_what_is_shared_is_saved_once_and_loads_shared(tmp_path: Path) -> None:
    model, ids = tiny_stack(*SHARED).float(), tokens()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == sum(p.numel() for p in model.parameters())
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.model.layers[4].mixer.q_proj.weight is again.model.layers[0].mixer.q_proj.weight
    assert again.config.layers == model.config.layers == SHARED
    assert StackConfig(**json.loads(model.config.to_json_string())).layers == SHARED
    with torch.no_grad():
        assert torch.equal(again(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_of_shared_layers_are_the_plain_ones(reentrant: bool) -> None:
    gradients = []
    for checkpoint in (False, True):
        model = tiny_stack(*SHARED).train()
        if checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(tokens(2, 12), labels=tokens(2, 12)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, msg=name)


def _refused(*layers: Any) -> str:
    with pytest.raises(ManticoreError) as caught:
        StackConfig(layers=list(layers), hidden_size=16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


A: list[Any] = ["mh-attention", HEADS]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([A, [*A, {"weights_of": 1}]], "layers[1]: weights_of is 1 (expected the position of a lower layer). Fix: one"),
        ([[*A, {"weights_of": 1}], A], "layers[0]: weights_of is 1 (expected the position of a lower layer). Fix: lea"),
        ([A, [*A, {"weights_of": -1}]], "layers[1]: weights_of is -1"),
        ([A, [*A, {"weights_of": True}]], "layers[1]: weights_of is True (expected the position"),
        ([A, ["mh-attention", {"num_heads": 2}, {"weights_of": 0}]], "(expected the same primitive with the same opti"),
        (["mamba", ["swiglu", {}, {"weights_of": 0}]], "layers[1]: swiglu cannot have the weights of layers[0], mamba"),
        ([A, [*A, {"weight_of": 0}]], "layers[1]: unknown sharing 'weight_of'. Did you mean 'weights_of'?"),
        ([A, [*A, {"features_of": 0}]], "layers[1]: features and features_of go together"),
        ([A, [*A, {"features": ["keys"]}]], "layers[1]: features and features_of go together"),
        ([A, [*A, {"features_of": 0, "features": "keys"}]], "layers[1]: features is 'keys' (expected a list of names)"),
        ([A, [*A, {"features_of": 0, "features": ["keys"]}]], "'mh-attention': features is ['keys'] (expected ['ke"),
        ([A, [*A, {"features_of": 1, **KV}]], "layers[1]: features_of is 1"),
        (["mamba", [*A, {"features_of": 0, **KV}]], "from layers[0], mamba: it is of another class of operators"),
        (["mlp", ["mlp", {}, {"features_of": 0, **KV}]], "features is ['keys', 'values'] (it has none that c"),
        ([["mh-attention", {"num_heads": 2}], [*A, {"features_of": 0, **KV}]], "its heads have width 8 (expected 4)"),
        ([["mh-attention", {**HEADS, "rotary": False}], [*A, {"features_of": 0, **KV}]], "its window or rotations are"),
        ([A, [*A, {"features_of": 0, **KV}], [*A, {"weights_of": 1}]], "layers[1] has no weights for its keys and val"),
    ],
)  # fmt: skip
def test_sharing_that_cannot_be_is_refused_by_position(layers: list[Any], words: str) -> None:
    assert words in _refused(*layers)


def test_strategies_of_a_class() -> None:
    assert [shareable("mh-attention", HEADS, strategy) for strategy in (1, 2, 3)] == [(), *[("keys", "values")] * 2]
    assert shareable("mlp", {}, 3) == ()
    assert family("mh-attention") == family("sliding-attention") != family("mlp") == ""
