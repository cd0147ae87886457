"""Sizes of whole stacks: the published counts, MAD's table of states, and both normalisations."""

from __future__ import annotations

import pytest

from manticore.errors import ManticoreError
from manticore.registry import entries
from manticore.stacks.configuration import StackConfig
from manticore.stacks.normalise import iso_parameters, iso_state
from manticore.stacks.presets import preset_config
from manticore.stacks.sizes import fixed_state, layer_parameters, layer_sizes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("transformer", 403456),
        ("hyena-swiglu", 520056),
        ("mh-hyena-swiglu", 333084),
        ("striped-mh-hyena-swiglu", 368270),
        ("striped-mh-hyena-moe", 427934),
        ("striped-hyena-experts-moe", 454536),
        ("mamba", 430080),
        ("mh-gla-swiglu", 443680),
    ],
)
def test_architectures_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    # counted in the models of MAD's code with LayerNorm, at 128 positions
    assert layer_parameters(preset_config(name, norm="layer", max_position_embeddings=128)) == parameters


@pytest.mark.parametrize(
    ("layer", "times", "options", "total"),
    [
        ("hyena", 2, {}, 4096),
        ("hyena-experts", 2, {}, 4096),
        ("mh-hyena", 2, {"num_groups": 16}, 4096),  # as the paper counts it
        ("mh-hyena", 2, {}, 8192),  # as its code builds it
        ("mamba", 4, {}, 4096),
        ("mh-gated-linear-attention", 2, {}, 4096),
        ("rwkv5-time-mixer", 2, {}, 4096),
        ("rwkv6-time-mixer", 2, {}, 4096),
        ("rwkv7-time-mixer", 2, {}, 4096),
        ("kimi-delta-attention", 2, {}, 4096),
        ("mh-linear-attention", 2, {}, 2048),
        ("gated-linear-attention", 1, {}, 16384),
        ("linear-attention", 1, {}, 16384),
        ("mh-attention", 2, {}, 0),
    ],
)
def test_the_table_of_states(layer: str, times: int, options: dict[str, int], total: int) -> None:
    assert fixed_state(StackConfig(layers=[layer, "swiglu"] * times, layer_options={layer: options})) == total


def test_growing_states_are_listed_at_their_length() -> None:
    rows = layer_sizes(preset_config("striped-mh-hyena-swiglu"), 100)
    assert [row.name for row in rows] == ["mh-hyena", "swiglu", "mh-attention", "swiglu"]
    assert [(row.state, row.fixed_state) for row in rows] == [(4096, True), (0, False), (25600, False), (0, False)]


@pytest.mark.parametrize("name", [name for name in entries("stack") if not name.endswith("transformer")])
def test_iso_state_gives_every_architecture_the_same_state(name: str) -> None:
    # three layers with a state cannot share 4,096 numbers
    elements = 6144 if name in ("mambaformer", "kimi-linear") else 4096
    assert fixed_state(iso_state(preset_config(name), elements)) == elements


def test_iso_state_uses_the_option_of_each_primitive() -> None:
    config = iso_state(StackConfig(layers=["mh-hyena", "mamba-2", "delta-net", "mh-linear-attention"]), 8192)
    assert dict(config.layer_list) == {
        "mh-hyena": {"num_groups": 16},
        "mamba-2": {"state_size": 8},
        "delta-net": {"num_heads": 8},
        "mh-linear-attention": {"num_heads": 8},
    }


def test_iso_state_says_what_it_cannot_reach() -> None:
    with pytest.raises(ManticoreError, match=r"mamba cannot share a state of 4000 \(nearest is 3072"):
        iso_state(preset_config("mamba"), 4000)
    with pytest.raises(ManticoreError, match="no layer of this stack has a fixed state"):
        iso_state(preset_config("transformer"))


@pytest.mark.parametrize("name", ["transformer", "mh-hyena-swiglu", "striped-mh-hyena-moe", "mamba", "mambaformer"])
def test_iso_parameters_comes_near(name: str) -> None:
    config = iso_parameters(preset_config(name), 450_000)
    assert abs(layer_parameters(config) - 450_000) < 0.05 * 450_000
    assert config.layer_names == preset_config(name).layer_names


def test_iso_parameters_says_when_other_layers_have_more() -> None:
    with pytest.raises(ManticoreError, match="its other layers alone have more than 1000 parameters"):
        iso_parameters(preset_config("transformer"), 1000)
