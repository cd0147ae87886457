"""Operators by their codes and the pool: definition, gradients, cache, padding, counts, features that they take."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from liv_twins import Lower, operator
from tiny_stacks import tiny_stack, tokens

from manticore.components.runner import Runner
from manticore.components.selfcheck import continues_by_one_token_only, self_check
from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.registry import entries
from manticore.stacks.catalogue import build_mixer, measured, shareable
from manticore.stacks.configuration import StackConfig
from manticore.stacks.liv.codes import CODES, LEGAL, POOL, OperatorCode
from manticore.stacks.liv.low_rank import default_heads
from manticore.stacks.mixer import Step
from manticore.stacks.modeling import StackCache, StackForCausalLM
from manticore.stacks.sizes import cache_bytes, layer_sizes

WIDTH, TOKENS = 8, 7
BANDED = {"window": 3}
OPERATORS: list[Any] = [["liv", {"code": code, **BANDED}] for code in LEGAL] + [[name, {}] for name in POOL]


def code_of(entry: Any) -> str:
    return entry[1].get("code") or CODES[entry[0].removeprefix("diff-")]


def named(entry: Any) -> str:
    return entry[1].get("code", entry[0])


def tiny(*layers: Any) -> StackForCausalLM:
    return tiny_stack(*layers, hidden_size=WIDTH)


@pytest.mark.parametrize("entry", OPERATORS, ids=named)
def test_every_class_and_code_computes_its_formula_causally_with_gradients_and_from_a_cache(entry: Any) -> None:
    model, ids = tiny(entry), tokens(2, TOKENS)
    layer: Any = model.model.layers[0]
    embedded = model.model.embed_tokens(ids[:1])
    leaves = list(layer.mixer.parameters())
    results = []
    for hidden in (
        model.model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True).hidden_states[-1],
        torch.stack([row + operator(layer.mixer, layer.norm(row), code_of(entry)) for row in embedded]),
    ):
        results.append((hidden, torch.autograd.grad(hidden.square().sum(), leaves, retain_graph=True)))
    (fast, gradients), (slow, expected) = results
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    for got, wanted in zip(gradients, expected):
        scale = float(wanted.abs().max()) + 1e-12
        torch.testing.assert_close(got / scale, wanted / scale, rtol=1e-7, atol=1e-8)
    # of the codes, those with heads: the others differ from them in the number of heads alone
    _check_cache(model, ids, sized=entry[0] != "liv" or code_of(entry)[4] == "3")
    with counted_flops() as counter:
        mixer = measured(entry[0], WIDTH, 96, entry[1])
        mixer(torch.empty(1, TOKENS, WIDTH, device="meta"), Step(attention="sdpa"))
    assert mixer.flops(TOKENS) == counter.get_total_flops()


def _check_cache(model: StackForCausalLM, ids: torch.Tensor, *, sized: bool = True) -> None:
    """Left padding and a cache in uneven pieces change nothing, and the cache is as large as is said."""
    padded = torch.cat([tokens(2, 2, seed=9), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :2] = 0
    cache = StackCache(model.config)
    cuts = [0, 4, 5, padded.shape[1]]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        parts = [
            model(padded[:, a:b], attention_mask=mask[:, :b], past_key_values=cache, use_cache=True).logits
            for a, b in pairwise(cuts)
        ]
    torch.testing.assert_close(torch.cat(parts, 1)[:, 2:], whole, rtol=1e-9, atol=1e-11)
    if sized:
        assert cache_bytes(model.config, padded.shape[1], batch=2) == 2 * held(cache)


def held(cache: StackCache) -> int:
    """Numbers in a cache."""
    found = 0
    for layer in cache.layers:
        states = [state for name in ("conv_states", "recurrent_states") for state in getattr(layer, name, {}).values()]
        tensors = [getattr(layer, "keys", None), getattr(layer, "values", None), *states]
        found += sum(tensor.numel() for tensor in tensors if tensor is not None)
    return found


SHARING = [
    (entry, features)
    for entry in [
        *([name, {}] for name in ("sa-1", "sa-2", "rec-1", "gconv-1", "gconv-2", "gmemless", "diff-sa-2")),
        *([name, {}] for name in ("diff-rec-2", "diff-gconv-1", "diff-gconv-2")),
        *(["liv", {"code": code, **BANDED}] for code in ("22113", "32113", "42243", "73132", "91131")),
    ]
    for features in dict.fromkeys(shareable(*entry, strategy) for strategy in (2, 3))
]


@pytest.mark.parametrize(("entry", "features"), SHARING, ids=lambda each: str(each))
@pytest.mark.parametrize("same_weights", [False, True])
def test_features_of_a_lower_layer_are_that_layers(entry: Any, features: tuple[str, ...], same_weights: bool) -> None:
    name, options = entry
    sharing: dict[str, Any] = {"features_of": 0, "features": list(features)}
    if same_weights:
        sharing["weights_of"] = 0
    model, ids = tiny([name, options], "swiglu", [name, options, sharing]), tokens(2, TOKENS)
    first, _, third = model.model.layers
    code = code_of(entry)
    with torch.no_grad():
        hidden = model.model(ids, use_cache=False, output_hidden_states=True).hidden_states
        row = hidden[2][0]
        lower = Lower(first.mixer, first.norm(hidden[0][0]), features)
        expected = row + operator(third.mixer, third.norm(row), code, lower)
        torch.testing.assert_close(expected, hidden[3][0], rtol=1e-9, atol=1e-11)
    _check_cache(model, ids)
    rows = layer_sizes(model.config, TOKENS)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.model.layers.parameters())
    if not same_weights:
        assert rows[2].parameters < rows[0].parameters
    if features == shareable(*entry, 3):
        assert rows[2].state == 0
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_flops_of_what_is_left_are_counted() -> None:
    for entry, features in SHARING:
        name, options = entry
        sharing = {"features_of": 0, "features": list(features)}
        config = StackConfig(layers=[(name, options), (name, options, sharing)], hidden_size=WIDTH)
        with torch.device("meta"):
            model = StackForCausalLM(config).eval()
            with counted_flops() as counter:
                model.model(inputs_embeds=torch.empty(1, TOKENS, WIDTH), use_cache=False)
        assert sum(row.flops for row in layer_sizes(config, TOKENS)) == counter.get_total_flops(), (entry, features)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1212", "operator code '1212' has 4 digits (expected 5: featurizer, token mixing, sparsity"),
        ("02123", "position 1, featurizer, is '0' (expected 1, 2, 3, 4, 5, 6, 7, 8, 9)"),
        ("13123", "position 2, token mixing, is '3' (expected 2 behind 1)"),
        ("54211", "position 3, sparsity, is '2' (expected 1 behind 54)"),
        ("73121", "position 4, non-linearity, is '2' (expected 1, 3, 4 behind 731)"),
        ("32122", "position 5, channel mixing, is '2' (expected 1, 3 behind 3212)"),
        ("1212x", "position 5, channel mixing, is 'x' (expected 1, 2, 3 behind 1212)"),
    ],
)
def test_codes_that_are_not_legal_are_refused_by_position(code: str, words: str) -> None:
    with pytest.raises(ManticoreError) as caught:
        StackConfig(layers=["mlp", ("liv", {"code": code})])
    assert str(caught.value).startswith("stack: layers[1]: layer 'liv': operator code")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_pool_is_stars_in_the_order_of_its_ids() -> None:
    assert [POOL[id_ - 1] for id_ in (1, 5, 7, 9, 10, 17)] == ["sa-1", "rec-1", "gconv-1", "gmemless", "diff-sa-1",
                                                               "diff-gconv-2"]  # fmt: skip
    assert len(POOL) == 17
    assert {*POOL, "liv"} <= {*entries("layer")}
    assert {*CODES.values()} < {*LEGAL}
    assert OperatorCode.read("91142") == OperatorCode(9, 1, 1, 4, 2)


@pytest.mark.parametrize("width", [32, 40, 48, 64, 96, 768, 2048])
def test_every_class_fits_the_widths_of_searches(width: int) -> None:
    heads = default_heads(width)
    assert width % heads == 0
    assert width // heads % 2 == 0
    counts = {name: sum(p.numel() for p in measured(name, width, 64).parameters()) for name in POOL}
    assert all(counts[f"diff-{name}"] == 2 * counts[name] for name in CODES if name != "gmemless")
    square = width * width
    assert counts["sa-1"] == counts["gconv-1"] - 3 * width == 4 * square
    assert counts["sa-2"] == 4 * square + 9 * width
    assert [counts["sa-3"], counts["sa-4"]] == [2.5 * square, 3 * square]
    # a state of (width, 16) and (width, 2), and keys and values of all heads, of a quarter and of half of them
    states = [measured(name, width, 64).state_size(10) // width for name in POOL[:8]]
    assert states == [20, 20, 5, 10, 16, 2, 2, 16]


def test_a_stack_of_the_pool_is_a_component() -> None:
    model = tiny_stack("sa-2", "diff-sa-3", "diff-rec-1", "gconv-2", "diff-gconv-1").float()
    runner = Runner(model)
    assert self_check(model, runner) == 0.0
    assert continues_by_one_token_only(runner) is False


def test_heads_that_cannot_be_end_in_one_line() -> None:
    with pytest.raises(ManticoreError, match="repeated 4 times do not fill 2 heads"):
        build_mixer("sa-3", 16, 16, {"num_heads": 2})
    with pytest.raises(ManticoreError, match="5 heads do not divide width 16"):
        build_mixer("diff-sa-2", 16, 16, {"num_heads": 5})
    with pytest.raises(ManticoreError, match="unknown option 'window'"):
        build_mixer("sa-1", 16, 16, {"window": 3})


def test_attention_without_a_softmax_says_who_cannot_compute_it() -> None:
    mixer = build_mixer("liv", 16, 16, {"code": "12133"})
    with pytest.raises(ManticoreError, match="without a softmax cannot be computed by 'flash_attention_2'"):
        mixer(torch.zeros(1, 3, 16), Step(attention="flash_attention_2"))
