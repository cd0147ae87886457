"""Components that share one feature space: nothing translates between them, in all that is made of their hybrid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.fresh import fresh_branch
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.report.block_picture import hand_overs
from manticore.report.results import parse_results
from manticore.training.budget import count_parameters

LAYERS = ["mh-gated-linear-attention"]
HOW: dict[str, Any] = {"num_blocks": 2, "check": False}


@pytest.fixture(scope="module")
def parent() -> PreTrainedModel:
    return tiny_model("llama", seed=3)


@pytest.fixture(scope="module")
def other() -> PreTrainedModel:
    return tiny_model("mamba", seed=4)


@pytest.fixture(scope="module", params=["translated", "routed"])
def hybrid(parent: PreTrainedModel, other: PreTrainedModel, request: Any) -> ManticoreForCausalLM:
    """A parent, another one, and a branch of the first."""
    return manticore.combine([parent, other, "fresh:mh-gated-linear-attention"], mixing=request.param, **HOW)


def test_projectors_stand_between_spaces_alone(hybrid: ManticoreForCausalLM) -> None:
    assert hybrid.config.feature_spaces == [0, 1, 0]
    pairs = {(source, target) for source, target in [(0, 1), (1, 0), (1, 2), (2, 1)]}
    assert set(hybrid.mixing.projectors) == {f"{n}_{a}_{b}" for n in range(2) for a, b in pairs}
    translated = {(t.source[0], t.target[0]) for t in hybrid.mixing.translations()}
    assert translated == pairs


@torch.no_grad()
def test_what_enters_is_the_weighted_mean_of_one_space(hybrid: ManticoreForCausalLM) -> None:
    hybrid.set_mixture_weights([[0.25, 0, 0.75], [1, 0, 0]])
    width = hybrid.config.components[0].hidden_size
    features = {k: torch.randn(1, 3, width, generator=torch.Generator().manual_seed(k)) for k in (0, 2)}
    entering = hybrid.mixing.enter(1, features, [0, 2])
    for k in (0, 2):
        torch.testing.assert_close(entering[k], 0.25 * features[0] + 0.75 * features[2])


@torch.no_grad()
def test_saved_and_discretized(hybrid: ManticoreForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    hybrid.set_mixture_weights([[0.2, 0.3, 0.5]] * 2)
    hybrid.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.feature_spaces == [0, 1, 0]
    assert torch.equal(again(ids).logits, hybrid(ids).logits)
    for path, projectors in (([0, 2], 0), ([2, 0], 0), ([1, 2], 1)):
        small = manticore.discretize(again, path)
        hybrid.set_mixture_weights(path)
        assert torch.equal(small(ids).logits, hybrid(ids).logits)
        assert len(small.mixing.projectors) == projectors


def test_folders_from_before_have_projectors_between_all(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    written = hybrid.config.to_dict()
    del written["feature_spaces"]
    older = ManticoreForCausalLM(ManticoreConfig(**written))
    assert len(older.mixing.projectors) == 12
    older.save_pretrained(tmp_path)
    assert "feature_spaces" not in json.loads((tmp_path / "config.json").read_text())
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path).mixing.projectors) == 12


@pytest.mark.parametrize(
    ("spaces", "reason"),
    [
        ([0, 1], r"feature_spaces is \[0, 1\] \(expected for each of 3 components the first one of its space\)"),
        ([0, 2, 2], r"feature_spaces is \[0, 2, 2\] \(expected"),
        ([0, 0, 1], r"feature_spaces is \[0, 0, 1\] \(expected"),
        ([0, 0, 2], r"components 0 and 1 share a feature space, with widths \d+ and \d+"),
        ([0, 1, -1], "feature_spaces"),
        ("parent", "feature_spaces"),
    ],
)
def test_spaces_that_cannot_be(hybrid: ManticoreForCausalLM, spaces: Any, reason: str) -> None:
    written = hybrid.config.to_dict() | {"feature_spaces": spaces}
    written["component_1"] = hybrid.config.component_1.to_dict() | {"hidden_size": 48}
    with pytest.raises(ManticoreError, match=reason) as caught:
        ManticoreConfig(**written)
    assert len(str(caught.value).splitlines()) == 1


def test_a_branch_from_a_folder_is_in_its_parents_space_until_it_is_trained(
    parent: PreTrainedModel, other: PreTrainedModel, tmp_path: Path
) -> None:
    branch = fresh_branch(parent, LAYERS, num_blocks=2)
    branch.save_pretrained(tmp_path / "branch")
    two: Any = [tmp_path / "branch", parent]
    assert manticore.combine(two, vocab_size=9, **HOW).config.feature_spaces == [0, 0]
    assert manticore.combine([other, branch], vocab_size=9, **HOW).config.feature_spaces is None
    # two copies of a checkpoint were not made beside each other: what trains in one may be fitted in the other
    assert manticore.combine([parent, parent], vocab_size=9, **HOW).config.feature_spaces is None
    with torch.no_grad():
        branch.get_input_embeddings().weight[3] += 0.1
    branch.save_pretrained(tmp_path / "branch")
    assert manticore.combine(two, vocab_size=9, **HOW).config.feature_spaces is None


def test_alignment_leaves_one_space_alone(parent: PreTrainedModel, other: PreTrainedModel) -> None:
    hybrid = manticore.combine([parent, other, "fresh:mh-gated-linear-attention"], **HOW)
    text = torch.randint(0, 90, (12, 16), generator=torch.Generator().manual_seed(0))
    rows = Dataset.from_dict({"input_ids": text}).with_format("torch")
    how: dict[str, Any] = {"tokens": 192, "length": 16, "batch_size": 4}
    hybrid.set_mixture_weights([[0.4, 0.2, 0.4]] * 2)
    report = manticore.align(hybrid, rows, **how)
    assert {(t.source, t.target) for t in report.translations} == {(0, 1), (1, 0), (1, 2), (2, 1)}
    alone = manticore.combine([parent, "fresh:swiglu"], **HOW)
    nothing = manticore.align(alone, rows, **how)
    assert nothing.translations == []
    assert nothing.loss_after == nothing.loss_closed_form == nothing.loss_before
    with pytest.raises(ManticoreError, match=r"^align: steps have no effect, since"):
        manticore.align(alone, rows, steps=1, **how)


def test_counts(parent: PreTrainedModel) -> None:
    alone = manticore.combine([parent, "fresh:swiglu"], **HOW)
    parts = [count_parameters(alone.component(k)).total for k in range(2)]
    mixture = sum(p.numel() for p in alone.mixing.mixture_parameters())
    assert sum(p.numel() for p in alone.parameters()) == sum(parts) + mixture
    assert sum(p.numel() for p in nn.Module.parameters(alone.mixing)) == mixture


def test_the_report_draws_projectors_where_they_are() -> None:
    rows = [{"name": name} for name in ("parent", "other", "branch")]
    combine = {"num_blocks": 4, "feature_spaces": [0, 1, 0]}
    record = {"schema_version": 1, "components": rows, "combine": combine, "discretize": {"path": [0, 2, 1, 0]}}
    results = parse_results(record)
    assert hand_overs(results) == [2, 3]
    record["combine"] = {"num_blocks": 4}
    assert hand_overs(parse_results(record)) == [1, 2, 3]
    record["combine"] = combine | {"feature_spaces": [0, 3, 0]}
    with pytest.raises(ManticoreError, match=r"combine\.feature_spaces"):
        parse_results(record)
