"""Stacks that classify: the causal stack's features under a linear head, padding, saving, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stacks import tiny_stack
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from benchmarks.tiny_families import tiny_model
from manticore import (
    ManticoreError,
    ManticoreForSequenceClassification,
    StackForCausalLM,
    StackForSequenceClassification,
    StackForTokenClassification,
)

LAYERS = ["mamba", "mh-attention", "swiglu"]


@pytest.fixture(scope="module")
def stack() -> StackForCausalLM:
    return tiny_stack(*LAYERS)


@pytest.fixture(scope="module")
def ids(stack: StackForCausalLM) -> Tensor:
    return torch.randint(1, stack.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))


def test_it_reads_the_last_token_of_the_causal_stack(stack: StackForCausalLM, ids: Tensor) -> None:
    made = StackForSequenceClassification.from_causal_lm(stack, num_labels=3)
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        features = stack.model(input_ids=ids, use_cache=False).last_hidden_state
        output = made(ids, torch.ones_like(ids), labels=labels)
        assert torch.equal(output.logits, made.score(features)[:, -1])
        assert torch.equal(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 3)])
def test_padding_on_either_side_changes_nothing(stack: StackForCausalLM, ids: Tensor, left: int, right: int) -> None:
    made = StackForSequenceClassification.from_causal_lm(stack, num_labels=3)
    around = [torch.ones(len(ids), count, dtype=torch.long) for count in (left, right)]
    filled = torch.cat([around[0], ids, around[1]], 1)
    mask = torch.cat([around[0] * 0, torch.ones_like(ids), around[1] * 0], 1)
    with torch.no_grad():
        plain = made(ids, torch.ones_like(ids)).logits
        torch.testing.assert_close(made(filled, mask).logits, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        (StackForSequenceClassification, AutoModelForSequenceClassification),
        (StackForTokenClassification, AutoModelForTokenClassification),
    ],
)
def test_saved_and_loaded_it_computes_the_same(
    stack: StackForCausalLM, ids: Tensor, tmp_path: Path, kind: Any, auto: Any
) -> None:
    made = kind.from_causal_lm(stack, id2label={0: "no", 1: "yes"})
    made.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is kind
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    with torch.no_grad():
        given = (ids, torch.ones_like(ids))
        assert torch.equal(loaded(*given).logits, made(*given).logits)


def test_token_logits_learn_where_labels_are(stack: StackForCausalLM, ids: Tensor) -> None:
    made = StackForTokenClassification.from_causal_lm(stack, num_labels=3)
    labels = torch.full_like(ids, -100)
    labels[0, 4] = 2
    output = made(ids, labels=labels)
    assert output.logits.shape == (2, 9, 3)
    # transformers computes this loss in float32
    assert torch.allclose(output.loss, -output.logits[0, 4].float().log_softmax(-1)[2])
    output.loss.backward()
    assert all(p.grad is not None for p in made.parameters())


def test_what_is_no_stack_is_refused_with_a_way_out(ids: Tensor) -> None:
    with pytest.raises(ManticoreError, match=r"Fix: ManticoreForSequenceClassification"):
        StackForSequenceClassification.from_causal_lm(tiny_model("llama"), num_labels=2)


def test_a_stack_is_also_a_component(stack: StackForCausalLM, ids: Tensor) -> None:
    alone = ManticoreForSequenceClassification.from_causal_lm(stack, num_labels=3)
    made = StackForSequenceClassification.from_causal_lm(stack, num_labels=3)
    made.score.weight.data.copy_(alone.score["0"].weight)
    with torch.no_grad():
        given = (ids, torch.ones_like(ids))
        assert torch.equal(alone(*given).logits, made(*given).logits)
