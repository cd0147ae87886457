"""Plans of a parent beside its twin: what they share is counted once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.plan.cases import Cases, Setting
from manticore.plan.layer_cache import block_caches
from manticore.plan.skeleton import Shape, Skeleton
from manticore.search.cost_table import cost_table
from manticore.training.budget import count_parameters, flops_per_step
from manticore.training.trainable import set_trainable

BATCH, LENGTH, BLOCKS = 2, 12, 4


@pytest.fixture(scope="module", params=[None, [1, 2]], ids=["all layers", "two of four"])
def pair(request: pytest.FixtureRequest) -> list[PreTrainedModel]:
    parent = tiny_model("llama", seed=1, num_hidden_layers=4, tie_word_embeddings=True)
    return [parent, manticore.twin(parent, layers=request.param)]


@pytest.fixture(scope="module")
def hybrid(pair: list[PreTrainedModel]) -> Any:
    return manticore.combine(pair, num_blocks=BLOCKS)


@pytest.fixture(scope="module")
def cases(pair: list[PreTrainedModel]) -> Cases:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shape = Shape(BLOCKS, "translated", False, "linear", {}, torch.float32)
    return Cases(Skeleton(["a", "b"], [model.config for model in pair], shape, None, mode), mode, lora_rank=8)


@pytest.mark.parametrize("path", [None, [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("trainable", ["all", "frozen", "mixers"])
def test_parameters_and_flops_are_those_of_the_real_model(
    cases: Cases, hybrid: Any, path: list[int] | None, trainable: str
) -> None:
    case = cases.measure(Setting(trainable, False, False), path, batch_size=BATCH, length=LENGTH, mixture=False)
    real = copy.deepcopy(hybrid) if path is None else manticore.discretize(hybrid, path)
    set_trainable(real, trainable)
    for weights in real.mixing.mixture_parameters():
        weights.requires_grad_(False)
    counted = count_parameters(real)
    assert (case.held.parameters, case.held.trained) == (counted.total, counted.trainable)
    assert case.flops == flops_per_step(real, BATCH, LENGTH)


def test_the_cost_of_a_path_is_that_of_its_hybrid(hybrid: Any) -> None:
    table = cost_table(hybrid, "tokens=16,batch=1", ["cache_bytes", "parameters"])
    for path in ((0, 1, 1, 0), (1, 1, 0, 0), (0, 0, 0, 0)):
        real = manticore.discretize(hybrid, path)
        assert table.of(path)["parameters"] == sum(parameter.numel() for parameter in real.parameters())


def test_the_cache_of_a_twin_without_attention_is_planned(cases: Cases) -> None:
    parent, twin = block_caches(cases.skeleton, cases.mode)
    grows = [per_token for per_token, _ in twin]
    assert all(per_token > 0 for per_token, _ in parent)
    assert [per_token == 0 for per_token in grows] == [
        k in cases.skeleton.hybrid.component(1).config.layers for k in range(4)
    ]
