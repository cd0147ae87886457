"""What layers share: weights on their own inputs, and features that a lower layer has computed."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_stacks import tiny_config, tiny_stack, tokens
from transformers import AutoModelForCausalLM
from twins import TWINS

import manticore
from manticore.errors import ManticoreError
from manticore.stacks.autoencoder import StackForAutoEncoding
from manticore.stacks.catalogue import family, shareable
from manticore.stacks.classification import StackForSequenceClassification
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackCache, StackForCausalLM
from manticore.stacks.normalise import iso_state
from manticore.stacks.sizes import cache_bytes, layer_parameters, layer_sizes, state_bytes
from manticore.training.sharding import configure

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


def test_upper_layers_of_rwkv7_draw_their_values_towards_the_lowest_ones() -> None:
    """The first layer's values, also where they come through a layer that has drawn its own towards them."""
    options = {"num_heads": 4, "decay_rank": 3, "rate_rank": 4, "value_rank": 2, "gate_rank": 5}
    sharing = [["rwkv7-time-mixer", options, {"features_of": below, "features": ["values"]}] for below in (0, 2)]
    model = tiny_stack(["rwkv7-time-mixer", options], "rwkv7-channel-mixer", *sharing)
    ids = tokens(1, 21)
    layers: Any = model.model.layers
    twin = TWINS["rwkv7-time-mixer"]
    with torch.no_grad():
        hidden = model.model.embed_tokens(ids[0])
        inputs = layers[0].norm(hidden)
        before = torch.cat([torch.zeros_like(inputs[:1]), inputs[:-1]])
        first = layers[0].mixer.value(inputs + (before - inputs) * layers[0].mixer.mixes[3])
        hidden = hidden + twin(layers[0].mixer, inputs)
        hidden = hidden + TWINS["rwkv7-channel-mixer"](layers[1].mixer, layers[1].norm(hidden))
        for layer in layers[2:]:
            hidden = hidden + twin(layer.mixer, layer.norm(hidden), first)
        expected = model.lm_head(model.model.norm(hidden))
        whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(whole[0], expected, rtol=1e-9, atol=1e-11)
    parts, cache = continued(model, ids, [0, 7, 8, 9, 21])
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-11)
    assert 2 * held(cache) == cache_bytes(model.config, 21)
    # every layer has its own state, and a map of low rank more where it takes values
    sizes = layer_sizes(model.config, 21)
    assert [size.state for size in sizes] == [64, 0, 64, 64]
    assert sizes[2].parameters - sizes[0].parameters == 2 * 16 * 2 + 16


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
    values = [R, ["rwkv7-time-mixer", HEADS, {"features_of": len(SHARED), "features": ["values"]}]]
    gradients = []
    for checkpoint in (False, True):
        model = tiny_stack(*SHARED, *values, "kimi-delta-attention").train()
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
R: list[Any] = ["rwkv7-time-mixer", HEADS]
VALUES: dict[str, Any] = {"features_of": 0, "features": ["values"]}


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
        (["mamba", [*A, {"features_of": 0, **KV}]], "from layers[0], mamba: it is a selective recurrence of 32"),
        (["mlp", ["mlp", {}, {"features_of": 0, **KV}]], "features is ['keys', 'values'] (it has none that c"),
        ([["mh-attention", {"num_heads": 2}], [*A, {"features_of": 0, **KV}]], "its heads have width 8 (expected 4)"),
        ([["mh-attention", {**HEADS, "rotary": False}], [*A, {"features_of": 0, **KV}]], "its window or rotations are"),
        ([A, [*A, {"features_of": 0, **KV}], [*A, {"weights_of": 1}]], "layers[1] has no weights for its keys and val"),
        ([R, ["rwkv7-time-mixer", HEADS, {"weights_of": 0, **VALUES}]], "layers[0] has no weights to take values with"),
        (["mamba", ["rwkv7-time-mixer", HEADS, VALUES]], "recurrence of 32 x 4 (expected an RWKV-7 time mixer)"),
    ],
)  # fmt: skip
def test_sharing_that_cannot_be_is_refused_by_position(layers: list[Any], words: str) -> None:
    assert words in _refused(*layers)


def test_strategies_of_a_class() -> None:
    assert [shareable("mh-attention", HEADS, strategy) for strategy in (1, 2, 3)] == [(), *[("keys", "values")] * 2]
    assert shareable("mlp", {}, 3) == ()
    assert family("mh-attention") == family("sliding-attention") != family("mlp") == ""


SMALL: list[Any] = [
    A,
    "swiglu",
    ["mh-attention", HEADS, {"weights_of": 0}],
    ["mh-attention", HEADS, {"features_of": 0, **KV}],
]


def test_an_adapter_on_shared_weights_acts_wherever_they_are_used(tmp_path: Path) -> None:
    base, ids = tiny_stack(*SMALL), tokens()
    before = [parameter.detach().clone() for parameter in base.parameters()]
    with torch.no_grad():
        plain = base(ids, use_cache=False).logits
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))
    with torch.no_grad():
        changed = adapted(ids, use_cache=False).logits
    assert not torch.allclose(changed, plain)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_stack(*SMALL), tmp_path)
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(again(ids, use_cache=False).logits, changed, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(merged(ids, use_cache=False).logits, changed, rtol=1e-9, atol=1e-11)
    # maps of layers 0 (which is 2) and the queries of 3
    assert sum(not torch.equal(one, other) for one, other in zip(before, merged.parameters())) == 3


def test_shared_layers_classify_compress_and_compile(tmp_path: Path) -> None:
    ids, whole = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    causal = tiny_stack(*SMALL).float()
    classifier = StackForSequenceClassification.from_causal_lm(causal, num_labels=3).eval()
    encoder = StackForAutoEncoding(tiny_config(*SMALL, pooling="cls")).eval()
    for model in (classifier, encoder):
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            assert torch.equal(again(ids, whole).logits, model(ids, whole).logits)
    # torch tells every step of compiling to the log, which pytest would keep
    logging.disable(logging.INFO)
    try:
        with torch.no_grad():
            compiled = torch.compile(causal, backend="eager", fullgraph=True)
            assert torch.equal(compiled(ids, use_cache=False).logits, causal(ids, use_cache=False).logits)
    finally:
        logging.disable(logging.NOTSET)


def test_generation_with_shared_layers_is_the_same_without_a_cache() -> None:
    model, ids = tiny_stack("mamba", *SMALL[:2], ["mh-attention", HEADS, {"features_of": 1, **KV}]), tokens(2, 5)
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))


def test_layers_that_hand_features_on_cannot_be_cut_into_blocks() -> None:
    with pytest.raises(ManticoreError, match=r"layers\[3\] takes features of layers\[0\], which did not run with it"):
        manticore.combine([tiny_stack(*SMALL).float(), tiny_stack("mamba", "mamba").float()], num_blocks=2)


def test_layers_with_shared_weights_are_a_component_that_keeps_all_of_them() -> None:
    parents = [tiny_stack(*SMALL[:3], "swiglu").float(), tiny_stack("mamba", "mamba").float()]
    hybrid, ids = manticore.combine(parents, num_blocks=2), tokens(2, 6)
    hybrid.set_mixture_weights([0, 0])
    with torch.no_grad():
        assert torch.equal(hybrid(ids).logits, parents[0](ids, use_cache=False).logits)
    hybrid.set_mixture_weights([0, 1])
    with pytest.raises(ManticoreError, match="shares weights between its layers, so no layer can be dropped"):
        manticore.discretize(hybrid)


def test_shared_weights_are_not_sharded() -> None:
    plugin = SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False)
    with pytest.raises(ManticoreError, match="decoder layers share weights, which cannot be split layer by layer"):
        configure(plugin, tiny_stack(*SMALL), "finetune")


def test_normalised_stacks_go_on_sharing() -> None:
    features = {"features_of": 0, "features": ["B", "V", "decay"]}
    shared = ["mamba", ["mamba", {}, {"weights_of": 0}], ["mamba", {}, features], "mh-attention"]
    config = iso_state(StackConfig(layers=shared), 2 * 256 * 7)
    seven = {"state_size": 7}
    assert config.layers[:3] == [["mamba", seven], ["mamba", seven, {"weights_of": 0}], ["mamba", seven, features]]
