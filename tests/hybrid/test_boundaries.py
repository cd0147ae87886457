"""Components that are cut where somebody says, not evenly."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import MIXINGS, Build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.schema.loading import load_recipe
from manticore.settings import Combine
from manticore.stages.combine import Combine as CombineStage

DEPTHS = (4, 5)
UNEVEN = [[0, 1, 4], [0, 4, 5]]


def inner(depth: int, blocks: int) -> st.SearchStrategy[list[int]]:
    within = st.lists(st.integers(1, depth - 1), min_size=blocks - 1, max_size=blocks - 1, unique=True)
    return within.map(lambda edges: [0, *sorted(edges), depth])


cuts = st.integers(1, 4).flatmap(lambda blocks: st.tuples(*(inner(depth, blocks) for depth in DEPTHS)))


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts, st.sampled_from(MIXINGS), st.randoms(use_true_random=False))
@torch.no_grad()
def test_wherever_components_are_cut_they_stay_what_they_are_and_every_path_is_a_vertex(
    build: Build, parents: list[PreTrainedModel], ids: Tensor, edges: Any, mixing: str, draw: Any
) -> None:
    blocks = len(edges[0]) - 1
    hybrid = build(mixing, 2, num_blocks=blocks, boundaries=list(edges))
    assert hybrid.config.boundaries == list(edges)
    for k in range(2):
        hybrid.set_mixture_weights([k] * blocks)
        assert torch.equal(hybrid(ids).logits, parents[k](ids, use_cache=False).logits)
    path = [draw.randrange(2) for _ in range(blocks)]
    hybrid.set_mixture_weights(path)
    small = manticore.discretize(hybrid, path)
    assert torch.equal(small(ids).logits, hybrid(ids).logits)
    held = {
        (k, index)
        for k, runner in enumerate(small.runners)
        if runner is not None
        for index, layer in enumerate(runner.layers)
        if any(True for _ in layer.parameters())
    }
    assert held == {(k, i) for n, k in enumerate(path) for i in range(edges[k][n], edges[k][n + 1])}


@torch.no_grad()
def test_a_path_runs_the_layers_that_its_boundaries_name(build: Build, ids: Tensor) -> None:
    hybrid = build("translated", 2, boundaries=UNEVEN, num_blocks=2)
    hybrid.set_mixture_weights([1, 0])
    seen: list[tuple[int, int]] = []
    for k, runner in enumerate(hybrid.runners):
        assert runner is not None
        for index, layer in enumerate(runner.layers):
            layer.register_forward_hook(lambda *_, at=(k, index): seen.append(at))
    hybrid(ids)
    assert seen == [(1, 0), (1, 1), (1, 2), (1, 3), (0, 1), (0, 2), (0, 3)]


@torch.no_grad()
def test_they_survive_saving_decoding_and_discretizing(build: Build, ids: Tensor, tmp_path: Path) -> None:
    hybrid = build("routed", 2, boundaries=UNEVEN, num_blocks=2)
    hybrid.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["uneven_boundaries"] == UNEVEN
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(loaded(ids).logits, hybrid(ids).logits)
    small = manticore.discretize(loaded, [1, 0])
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert again.config.boundaries == UNEVEN
    assert torch.equal(again(ids).logits, small(ids).logits)
    first = again(ids[:, :7], use_cache=True)
    rest = again(ids[:, 7:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), small(ids).logits, atol=1e-5, rtol=0)


def test_the_even_cut_is_not_written_down(build: Build) -> None:
    even, given_ = build("translated", 2), build("translated", 2, boundaries=[[0, 1, 3, 4], [0, 2, 3, 5]])
    assert given_.config.to_json_string() == even.config.to_json_string()
    assert "boundaries" not in even.config.to_json_string()


def test_runs_that_were_begun_before_boundaries_could_be_given_go_on() -> None:
    even = load_recipe("quickstart").recipe
    assert "boundaries" not in CombineStage().inputs(even)["combine"]
    uneven = load_recipe("quickstart", ["combine.boundaries=[[0, 1, 2], [0, 1, 4]]"]).recipe
    assert CombineStage().inputs(uneven)["combine"]["boundaries"] == [[0, 1, 2], [0, 1, 4]]


def test_there_are_as_many_blocks_as_they_name(parents: list[PreTrainedModel]) -> None:
    assert Combine(boundaries=UNEVEN).num_blocks == 2
    assert manticore.combine(parents[:2], boundaries=UNEVEN, check=False).config.boundaries == UNEVEN


@pytest.mark.parametrize(
    ("boundaries", "reason"),
    [
        ([[0, 1, 4]], r"^combine: boundaries of 1 components \(expected 2\)\. Fix: one list"),
        ([[0, 1, 4], [0, 5]], r"boundaries of component 1 are 2 layer indices \(expected 3, the last its number of"),
        (
            [[0, 1, 4], [0, 2, 6]],
            r"^combine: boundaries \[0, 2, 6\], but .*Mamba.* has 5 layers\. Fix: end them with 5$",
        ),
        ([[0, 1, 4], [0, 5, 5]], r"\[0, 5, 5\] are no boundaries: .* each has a layer or more"),
        ([[0, 1, 4], [1, 2, 5]], r"\[1, 2, 5\] are no boundaries: the first segment starts at layer 0"),
        ([[0, 1, 4], [0, -1, 5]], "boundaries"),
        ([[0, 1, 4], "0,2,5"], "boundaries"),
    ],
)
def test_boundaries_that_cannot_be(build: Build, boundaries: Any, reason: str) -> None:
    with pytest.raises(ManticoreError, match=reason) as caught:
        build("translated", 2, boundaries=boundaries, num_blocks=2)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"uneven_boundaries": [[0, 1, 4], [0, 4, 6]]},
            r"^config: boundaries \[0, 4, 6\], but component 1 has 5 layers",
        ),
        ({"num_blocks": 3}, r"^config: boundaries of component 0 are 3 layer indices \(expected 4"),
        ({"uneven_boundaries": [[0, 2, 4], [3, 2, 5]]}, r"uneven_boundaries"),
        ({"uneven_boundaries": [[0, 2, 4]]}, "boundaries of 1 components"),
        ({"uneven_boundaries": 3}, "uneven_boundaries"),
    ],
)
def test_folders_whose_boundaries_cannot_be(build: Build, change: dict[str, Any], reason: str) -> None:
    written = build("translated", 2, boundaries=UNEVEN, num_blocks=2).config.to_dict()
    with pytest.raises(ManticoreError, match=reason) as caught:
        ManticoreConfig(**{**copy.deepcopy(written), **change})
    assert len(str(caught.value).splitlines()) == 1


def test_a_path_found_with_other_boundaries_is_refused(build: Build, tmp_path: Path) -> None:
    manticore.discretize(build("translated", 2, boundaries=UNEVEN, num_blocks=2), [1, 0]).save_pretrained(tmp_path)
    alike = manticore.discretize(build("translated", 2, boundaries=UNEVEN, num_blocks=2), weights_from=tmp_path)
    assert alike.config.path == [1, 0]
    with pytest.raises(ManticoreError, match=r"is cut at \[\[0, 1, 4\], \[0, 4, 5\]\], this hybrid at \[\[0, 2, 4\]"):
        manticore.discretize(build("translated", 2, num_blocks=2), weights_from=tmp_path)
