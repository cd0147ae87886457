"""How components are cut, and that a configuration survives every way of being written down."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedModel

from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig, cut


@given(st.integers(1, 200).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_segments_cover_every_layer_once_and_are_as_even_as_can_be(shape: tuple[int, int]) -> None:
    layers, blocks = shape
    edges = cut(layers, blocks)
    sizes = [stop - start for start, stop in itertools.pairwise(edges)]
    assert (edges[0], edges[-1]) == (0, layers)
    assert len(sizes) == blocks
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    # each edge lies where an exact cut would, to half a layer
    assert all(abs(edge - layers * n / blocks) <= 0.5 for n, edge in enumerate(edges))


@given(st.integers(1, 50), st.integers(1, 50))
def test_more_blocks_than_layers_are_refused(layers: int, more: int) -> None:
    with pytest.raises(ManticoreError, match=f"{layers + more} blocks, but a component has only {layers} layers"):
        cut(layers, layers + more)


@pytest.fixture
def settings(parents: list[PreTrainedModel]) -> dict[str, Any]:
    return {
        "num_components": 3,
        "num_blocks": 3,
        "mixing": "routed",
        "projector": "low-rank",
        "projector_options": {"rank": 4},
        "layer_outputs": [[2] * 4, [0] * 5, [0] * 7],
        "one_token_at_a_time": [False, True, False],
        "path": [1, 0, 2],
        "searched_weights": [[0.1, 0.7, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]],
        "vocab_size": 97,
        **{f"component_{k}": copy.deepcopy(parent.config) for k, parent in enumerate(parents)},
    }


def assert_equal(a: ManticoreConfig, b: ManticoreConfig) -> None:
    written, other = a.to_dict(), b.to_dict()
    # where it was loaded from
    assert {**written, "_name_or_path": ""} == {**other, "_name_or_path": ""}
    assert a.boundaries == b.boundaries
    assert [type(config) for config in a.components] == [type(config) for config in b.components]


def test_round_trips(settings: dict[str, Any], tmp_path: Path) -> None:
    config = ManticoreConfig(**settings)
    assert config.boundaries == [[0, 1, 3, 4], [0, 2, 3, 5], [0, 2, 5, 7]]
    assert (config.hidden_size, config.num_hidden_layers) == (48, 16)
    assert_equal(ManticoreConfig(**config.to_dict()), config)
    assert_equal(ManticoreConfig.from_dict(json.loads(config.to_json_string())), config)
    assert_equal(copy.deepcopy(config), config)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert_equal(loaded, config)
    assert loaded.searched_weights == settings["searched_weights"]
    assert loaded.projector_options == {"rank": 4}


def test_a_dict_that_is_read_is_not_changed(settings: dict[str, Any]) -> None:
    written = ManticoreConfig(**settings).to_dict()
    before = copy.deepcopy(written)
    ManticoreConfig(**written)
    assert written == before


def test_the_attention_implementation_reaches_the_components(settings: dict[str, Any]) -> None:
    config = ManticoreConfig(**settings)
    config._attn_implementation = "eager"
    assert [component._attn_implementation for component in config.components] == ["eager"] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_components": 4}, r"component_3 is missing \(num_components is 4\)"),
        ({"component_1": {"model_type": "wombat"}}, "component_1 has unknown model_type 'wombat'"),
        ({"component_1": {"hidden_size": 3}}, "component_1 has unknown model_type None"),
        ({"component_1": {"model_type": "manticore"}}, "component_1 is a hybrid itself"),
        ({"num_blocks": 5, "path": None}, "5 blocks, but a component has only 4 layers"),
        ({"path": [0, 1]}, r"path \[0, 1\] \(expected 3 indices below 3\)"),
        ({"path": [0, 1, 3]}, r"path \[0, 1, 3\]"),
        ({"path": [0, -1, 1]}, r"path \[0, -1, 1\]"),
    ],
)
def test_configurations_that_cannot_be(settings: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManticoreError, match=reason):
        ManticoreConfig(**{**settings, **change})
