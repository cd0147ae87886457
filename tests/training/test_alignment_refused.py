"""What alignment refuses changes nothing."""

import pytest
import torch
from datasets import Dataset, DatasetDict
from tiny_aligned import dataset, hybrid_of, snapshot, unchanged

import manticore
from manticore.errors import ManticoreError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 2.5}, "tokens is 2.5"),
        ({"holdout": 0.0}, r"holdout is 0.0 \(expected above 0, below 1\). Fix: for instance 0.1"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"text": ["words without a tokenizer"]}, "text needs a tokenizer"),
        ({"text": DatasetDict({"train": dataset()})}, r"text is a DatasetDict .* text\['train'\]"),
        ({"text": dataset(1)}, "1 pack of 16 tokens .expected two or more"),
        ({"text": dataset(0)}, "the data set is empty"),
        ({"text": Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 2]]})}, "have 2 to 3 tokens .expected one length"),
        ({"text": Dataset.from_dict({"input_ids": [[1, 99]] * 4})}, "token id 99 .expected ids below .* 61"),
        ({"text": dataset(4, 33)}, "sequences of 33 tokens, but component 0 has 32 positions"),
        ({"text": dataset(4, 4, targets=[[-100] * 4] * 4)}, "the targets are -100 everywhere"),
    ],
)
def test_unusable_input_is_named_and_changes_nothing(options, message):
    hybrid = hybrid_of("gpt", "mamba")
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match=message):
        manticore.align(hybrid, **({"text": dataset()} | options))
    assert unchanged(hybrid, before)


def test_no_text_is_no_text():
    with pytest.raises(ManticoreError, match=r"^align: text is None \(expected a file, .* Fix: leave it out"):
        manticore.align(hybrid_of("gpt", "mamba"), None)


def test_a_discretized_hybrid_is_refused():
    small = manticore.discretize(hybrid_of("gpt", "mamba"), [0, 1])
    with pytest.raises(ManticoreError, match="Fix: align before discretizing"):
        manticore.align(small, dataset())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_component(bad):
    hybrid = hybrid_of("gpt", "mamba")
    with torch.no_grad():
        hybrid.component_1.backbone.layers[1].norm.weight[0] = bad
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match="component 1 at boundary 1 hold NaN or infinity"):
        manticore.align(hybrid, dataset(), tokens=480)
    after = hybrid.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if value.isfinite().all())


def test_steps_that_no_projector_feels_are_refused():
    hybrid = hybrid_of("gpt", "mamba", mixing="routed")
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match="no projector is used at the hybrid's mixture weights"):
        manticore.align(hybrid, dataset(), tokens=480, steps=2)
    assert unchanged(hybrid, before)


def test_steps_that_diverge_are_undone():
    hybrid = hybrid_of("gpt", "mamba")
    before = snapshot(hybrid)
    with pytest.raises(ManticoreError, match=r"the loss is .* in step \d+. Fix: a smaller lr"):
        manticore.align(hybrid, dataset(), tokens=480, steps=20, lr=1e30)
    assert unchanged(hybrid, before)


def test_rotary_positions_do_not_end():
    assert manticore.align(hybrid_of("llama", "mamba"), dataset(8, 65), tokens=400).tokens
