"""Stacked and stretched stacks: the published examples, and what is kept on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manticore.errors import ManticoreError
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM
from manticore.stacks.scaling import runs, scaled, stack, stretch, widened
from manticore.stacks.sizes import layer_parameters

# width, inner width, heads, key heads, blocks of Llama's; layers of attention and SwiGLU that stack and stretch give
PUBLISHED = {
    "350M": (1536, 4096, 24, 8, 14, (8, 16), (8, 18)),
    "1B": (2048, 8192, 32, 8, 16, (9, 18), (10, 19)),
    "3B": (3072, 8192, 24, 8, 28, (16, 32), (15, 33)),
    "8B": (4096, 14336, 32, 8, 32, (18, 36), (18, 37)),
}
SIX, SIXTEEN = "AAMMMM", "AAMMMMMAAMMMAMMM"


def composed(text: str, attention: Any, swiglu: Any, width: int) -> StackConfig:
    return StackConfig(layers=[attention if letter == "A" else swiglu for letter in text], hidden_size=width)


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_sizes(size: str) -> None:
    width, inner, heads, kv_heads, blocks, stacked, stretched = PUBLISHED[size]
    attention = ["grouped-query-attention", {"num_heads": heads, "num_kv_heads": kv_heads, "bias": False}]
    swiglu = ["swiglu", {"inner_width": inner}]
    # as the paper counts: matrices alone
    parameters = blocks * (2 * width * width + 2 * width * width * kv_heads // heads + 3 * width * inner)

    def layers(config: StackConfig) -> tuple[int, int]:
        return config.layer_names.count("grouped-query-attention"), config.layer_names.count("swiglu")

    assert layers(stack(composed(SIX, attention, swiglu, width), parameters)) == stacked
    assert layers(stretch(composed(SIXTEEN, attention, swiglu, width), parameters)) == stretched


def spelled(config: StackConfig) -> str:
    letters = {"grouped-query-attention": "A", "swiglu": "M"}
    return "".join(f"{length}{letters[entry[0]]}" for entry, length in runs(config.layers or ()))


def test_the_order_of_the_worked_examples() -> None:
    attention = ["grouped-query-attention", {"num_heads": 32, "num_kv_heads": 8, "bias": False}]
    swiglu = ["swiglu", {"inner_width": 8192}]
    six, sixteen = (composed(text, attention, swiglu, 2048) for text in (SIX, SIXTEEN))
    assert spelled(stack(six, 973_078_528)) == "2A4M" * 4 + "1A2M"
    assert spelled(stretch(sixteen, 973_078_528)) == "4A9M4A5M2A5M"


SMALL = StackConfig(layers=[["mh-attention", {"num_heads": 2}], "swiglu", "swiglu"], hidden_size=16, vocab_size=11)


@pytest.mark.parametrize("how", [stack, stretch])
def test_as_many_parameters_as_there_are_change_nothing(how: Any) -> None:
    own = layer_parameters(SMALL)
    assert how(SMALL, own).layers == SMALL.layers
    # whole multiples: no run is rounded up
    assert len(how(SMALL, 3 * own).layers) == 9
    assert layer_parameters(how(SMALL, 3 * own)) == 3 * own
    assert len(how(SMALL, 3 * own + 1).layers) > 9


def test_everything_else_stays_and_the_result_runs() -> None:
    large = scaled(SMALL, 60_000, width=32)
    assert (large.vocab_size, large.hidden_size, large.norm) == (11, 32, "rms")
    assert 60_000 <= layer_parameters(large) < 60_000 + layer_parameters(widened(SMALL, 32))
    logits = StackForCausalLM(large)(torch.zeros(1, 3, dtype=torch.long)).logits
    assert logits.shape == (1, 3, 11)
    assert StackConfig.from_dict(large.to_dict()).layers == large.layers


def test_heads_become_more_and_hidden_layers_wider() -> None:
    small = StackConfig(
        layers=[
            ["grouped-query-attention", {"num_heads": 4, "num_kv_heads": 2}],
            ["swiglu", {"inner_width": 48}],
            "mamba",
        ],
        hidden_size=32,
    )
    assert widened(small, 1024).layers == [
        ["grouped-query-attention", {"num_heads": 16, "num_kv_heads": 8}],
        ["swiglu", {"inner_width": 1536}],
        "mamba",
    ]
    given = widened(small, 1024, {"grouped-query-attention": {"num_kv_heads": 1}, "swiglu": {"inner_width": 7}})
    assert given.layers[0][1] == {"num_heads": 16, "num_kv_heads": 1}
    assert given.layers[1][1] == {"inner_width": 7}
    # a default number of heads counts as one that is given
    assert widened(StackConfig(layers=["mh-attention"], hidden_size=32), 2048).layers == [
        ["mh-attention", {"num_heads": 32}]
    ]


def test_without_a_width_it_is_in_proportion_to_the_depth() -> None:
    for parameters in (350_000_000, 3_000_000_000):
        large = scaled(SMALL, parameters)
        assert 40 < large.hidden_size / len(large.layers) < 100
    assert scaled(SMALL, 10_000).hidden_size % 8 == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: stack(SMALL, 100), r"100 parameters are fewer than the [\d,]+ that the 3 layers have at width 16"),
        (lambda: stretch(SMALL, 100), "or a smaller width"),
        (lambda: stack(SMALL, 10**15), "more than 10,000 layers of width 16. Fix: a larger width"),
        (lambda: scaled(SMALL, 10), "no width at which these 3 layers have as few as 10 parameters"),
        (lambda: scaled(SMALL, 10**6, width=31), "2 heads do not divide width 31"),
        (lambda: widened(SMALL, 32, {"swigul": {}}), "'swigul', which is not a layer. Did you mean 'swiglu'"),
    ],
)  # fmt: skip
def test_what_cannot_be_scaled_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ManticoreError, match=said):
        call()


SHARING = StackConfig(
    layers=[
        ["mh-attention", {"num_heads": 2}],
        "swiglu",
        "swiglu",
        ["mh-attention", {"num_heads": 2}, {"weights_of": 0}],
        ["mh-attention", {"num_heads": 2}, {"features_of": 0, "features": ["keys", "values"]}],
    ],
    hidden_size=16,
)


def test_each_copy_shares_within_itself_and_the_shortened_one_keeps_what_is_shared() -> None:
    small = layer_parameters(SHARING)
    large = stack(SHARING, 2 * small + small // 10)
    shared = [(at, each.weights_of) for at, each in enumerate(large.entries) if each.weights_of is not None]
    assert shared == [(3, 0), (8, 5), (12, 10)]
    taken = [(at, each.features_of) for at, each in enumerate(large.entries) if each.features_of is not None]
    assert taken == [(4, 0), (9, 5), (13, 10)]
    assert layer_parameters(stack(SHARING, 3 * small)) == 3 * small
    assert StackForCausalLM(large)(torch.zeros(1, 3, dtype=torch.long)).logits.shape[:2] == (1, 3)
    assert stretch(SHARING, small).layers == SHARING.layers
    with pytest.raises(ManticoreError, match=r"layers\[3\] shares with a lower layer, .* Fix: how='stack'"):
        stretch(SHARING, 2 * small)
