"""What weights by likelihood of the text can be trained and scored on: tasks whose targets are the next tokens."""

from __future__ import annotations

import pytest
import torch

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.tasks.task import load_task

LONG = {"max_position_embeddings": 512}


@pytest.fixture(scope="module")
def parents() -> list:
    return [tiny_model("mistral", seed=1, **LONG), tiny_model("llama", seed=3, **LONG)]


def small(name: str, **options: object):
    """The task with a handful of examples."""
    return load_task(name, num_train_examples=16, num_test_examples=4, **options)


@pytest.mark.parametrize("name", ["mad/selective-copying", "mad/memorization"])
def test_targets_that_are_not_the_next_token_are_refused(parents: list, name: str) -> None:
    task = small(name)
    hybrid = manticore.combine(parents, num_blocks=1, output="bayes", check=False, vocab_size=task.vocab_size)
    before = [p.clone() for p in hybrid.parameters()]
    for act in (manticore.finetune, manticore.evaluate, lambda *given: manticore.search(*given, method="darts")):
        with pytest.raises(ManticoreError, match=r"are not the next tokens .* Fix: output probabilities") as error:
            act(hybrid, task)
        assert len(error.value.lines) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, hybrid.parameters()))


def test_targets_that_are_the_next_token_train_and_are_scored(parents: list) -> None:
    task = small("mad/in-context-recall", seq_len=16, vocab_size=16)
    hybrid = manticore.combine(parents, num_blocks=1, output="bayes", check=False, vocab_size=16)
    result = manticore.finetune(hybrid, task, steps=2, batch_size=4, warmup_steps=0)
    assert result.model.config.output == "bayes"
    assert 0 < manticore.evaluate(result.model, task)["loss"] < 20


def test_heads_for_classes_are_refused(parents: list) -> None:
    task = load_task("listops-short")
    for output in ("probabilities", "bayes", "gate"):
        hybrid = manticore.combine(parents, num_blocks=1, output=output, check=False)
        with pytest.raises(ManticoreError, match=r"heads for classes make none\. Fix: combine with output logits"):
            manticore.finetune(hybrid, task, steps=1)
