"""Training, search and comparison on tasks with classes: which model comes out, what it costs, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from class_tasks import CLASSES, LENGTH, VOCABULARY, class_task
from transformers import PreTrainedModel

import manticore
from manticore import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM
from manticore.training.batches import batches
from manticore.training.budget import flops_per_step
from manticore.training.classifiers import load_saved, loading_class
from manticore.training.prepare import fit_to_task

FAST: dict[str, Any] = {"batch_size": 16, "lr": 1e-2, "cpu": True}


@pytest.fixture
def stack() -> StackForCausalLM:
    torch.manual_seed(3)
    return StackForCausalLM(
        StackConfig(layers=["mamba", "mh-attention"], layer_options={"mh-attention": {"num_heads": 2}},
                    vocab_size=VOCABULARY, hidden_size=16)
    )  # fmt: skip


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "documents", "expected"),
    [
        ("hybrid", 1, "ManticoreForSequenceClassification"),
        ("hybrid", 2, "ManticoreForPairClassification"),
        ("mamba", 1, "ManticoreForSequenceClassification"),
        ("stack", 1, "StackForSequenceClassification"),
        ("stack", 2, "StackForPairClassification"),
    ],
)
def test_a_classifier_is_made_and_learns_and_the_given_model_stays(
    request: pytest.FixtureRequest, kind: str, documents: int, expected: str, tmp_path: Path
) -> None:
    model: PreTrainedModel = request.getfixturevalue(kind)
    before, task = weights(model), class_task(documents=documents)
    result = manticore.finetune(model, task, steps=25, seed=1, **FAST)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(result.model).__name__ == expected
    assert result.model.config.num_labels == (2 if documents == 2 else CLASSES)
    assert result.tokens == 25 * 16 * LENGTH * documents
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    assert set(result.metrics) == {"loss", "accuracy"}

    result.model.save_pretrained(tmp_path)
    loaded = load_saved(tmp_path)
    assert type(loaded) is type(result.model)
    assert manticore.evaluate(loaded, task) == pytest.approx(result.metrics)
    own = loading_class(loaded)
    assert own == ("AutoModelForSequenceClassification" if documents == 1 else type(loaded).__name__)


def test_trained_further_it_is_the_same_model_and_other_classes_take_a_new_head(hybrid: ManticoreForCausalLM) -> None:
    made = manticore.finetune(hybrid, class_task(), steps=1, **FAST).model
    assert manticore.finetune(made, class_task(), steps=1, **FAST).model is made
    other = manticore.finetune(made, class_task(num_classes=2), steps=1, **FAST).model
    assert other is not made
    assert other.config.num_labels == 2


def test_accumulated_steps_are_whole_steps(hybrid: ManticoreForCausalLM) -> None:
    whole = manticore.finetune(hybrid, class_task(), steps=4, **FAST).history
    parts = manticore.finetune(hybrid, class_task(), steps=4, accumulation=4, **FAST).history
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    task, settings = class_task(), {**FAST, "steps": 6, "save_steps": 2, "seed": 5}
    whole = manticore.finetune(hybrid, task, out=tmp_path / "whole", **settings)

    def stop(step: int, steps: int, row: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manticore.finetune(hybrid, task, out=tmp_path / "cut", log_steps=1, progress=stop, **settings)
    resumed = manticore.finetune(hybrid, task, out=tmp_path / "cut", resume=True, **settings)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("documents", [1, 2])
def test_a_budget_of_flops_is_spent_in_steps_and_documents_count(gpt: PreTrainedModel, documents: int) -> None:
    task = class_task(documents=documents)
    made = fit_to_task(gpt, task, 0)
    step = flops_per_step(made, 16, LENGTH)
    assert step >= documents * 0.9 * flops_per_step(fit_to_task(gpt, class_task(), 0), 16, LENGTH)
    result = manticore.finetune(gpt, task, budget_flops=3 * step + 1, **FAST)
    assert result.steps == 3
    assert result.flops == 3 * step


def test_counting_needs_no_padding_token_and_leaves_none_behind(gpt: PreTrainedModel) -> None:
    made = fit_to_task(gpt, replace(class_task(), pad_token_id=None), 0)
    assert flops_per_step(made, 4, LENGTH) > 0
    assert made.config.pad_token_id is None


@pytest.mark.parametrize("order", ["simultaneous", "bilevel"])
def test_search_finds_weights_for_a_classifier(hybrid: ManticoreForCausalLM, order: str) -> None:
    before = weights(hybrid)
    result = manticore.search(hybrid, class_task(), method="darts", order=order, steps=8, mixture_lr=0.1, **FAST)
    assert type(result.model).__name__ == "ManticoreForSequenceClassification"
    assert all(torch.equal(tensor, before[name]) for name, tensor in hybrid.state_dict().items())
    assert not torch.equal(result.weights, torch.full_like(result.weights, 0.5))
    small = manticore.discretize(result.model)
    assert manticore.finetune(small, class_task(), steps=2, **FAST).model is small


@pytest.mark.parametrize("documents", [1, 2])
def test_a_search_over_candidates_leaves_a_classifier_that_goes_on(
    hybrid: ManticoreForCausalLM, documents: int
) -> None:
    before, task = weights(hybrid), class_task(documents=documents)
    made = fit_to_task(hybrid, task, 0)
    unit = 12 * max(flops_per_step(manticore.discretize(made, [k, k]), 16, LENGTH) for k in range(2))
    result = manticore.search(hybrid, task, finetune_flops=unit, **FAST)
    assert all(torch.equal(tensor, before[name]) for name, tensor in hybrid.state_dict().items())
    assert sorted(each.path for each in result.candidates) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert all(each.points for each in result.candidates)
    tuned = manticore.finetune(result, task, **FAST)
    assert type(tuned.model) is type(result.model) is type(made)
    # nobody may have been ahead before the end of a unit
    assert 0 < result.trained_flops <= tuned.flops <= unit
    assert tuned.model.config.path == result.path


def test_parents_stacks_and_hybrids_are_compared_with_the_same_head(
    hybrid: ManticoreForCausalLM, gpt: PreTrainedModel, mamba: PreTrainedModel, stack: StackForCausalLM, tmp_path: Path
) -> None:
    models = {"gpt": gpt, "mamba": mamba, "stack": stack, "hybrid": hybrid}
    task = class_task()
    budget = 2 * flops_per_step(fit_to_task(hybrid, task, 0), 16, LENGTH)
    table = manticore.compare(models, task, budget_flops=budget, seeds=[0], learning_rates=[1e-2, 1e-3], batch_size=16)
    assert {row.model for row in table.rows} == {*models, "ensemble (logits)"}
    assert all(0 <= row.mean <= 1 for row in table.rows)
    assert all(row.cache_bytes_per_token + row.state_bytes > 0 for row in table.rows)


@pytest.mark.parametrize("trainable", ["frozen", "projectors", "lora"])
def test_the_head_for_classes_always_trains(hybrid: ManticoreForCausalLM, trainable: str) -> None:
    made = fit_to_task(hybrid, class_task(), 0)
    before = {k: head.weight.clone() for k, head in made.score.items()}
    manticore.finetune(made, class_task(), steps=2, trainable=trainable, lora_rank=2, **FAST)
    for k, head in made.score.items():
        assert not torch.equal(head.weight, before[k])


def test_batches_are_filled_up_to_one_length_and_say_where() -> None:
    task = class_task(examples=5, documents=2)
    (batch,) = batches(task.data["train"], length=LENGTH, batch_size=8)
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "input_ids": (5, LENGTH), "attention_mask": (5, LENGTH),
        "input_ids_2": (5, LENGTH), "attention_mask_2": (5, LENGTH), "targets": (5,),
    }  # fmt: skip
    lengths = [len(ids) for ids in task.data["train"]["input_ids_2"]]
    assert batch["attention_mask_2"].sum(1).tolist() == lengths
    assert batch["targets"].tolist() == task.data["train"]["label"]


def test_a_label_out_of_range_is_named_with_its_row() -> None:
    task = class_task()
    first = task.data["train"]["label"].index(2)
    with pytest.raises(ManticoreError, match=rf"^last token: train, row {first}: label out of range .got 2, [^\n]+$"):
        replace(task, num_classes=2)


def test_batch_size_of_an_evaluation_changes_nothing(gpt: PreTrainedModel) -> None:
    made = fit_to_task(gpt, class_task(), 0).eval()
    one, many = (manticore.evaluate(made, class_task(), batch_size=size) for size in (1, 64))
    assert one == pytest.approx(many, rel=1e-5)


def test_what_does_not_fit_is_one_clear_line(hybrid: ManticoreForCausalLM, gpt: PreTrainedModel) -> None:
    made = fit_to_task(copy.deepcopy(gpt), class_task(), 0)
    text = replace(class_task(), num_classes=None)
    long = replace(class_task(), length=64)
    for refused, message in (
        (lambda: manticore.evaluate(gpt, class_task()), r"has 3 classes, but this GPTNeoForCausalLM has no head"),
        (lambda: manticore.evaluate(made, class_task(num_classes=2)), r"has 2 classes, but this Manticore"),
        (lambda: manticore.finetune(made, text, steps=1), r"asks for a target at every position"),
        (lambda: manticore.finetune(gpt, long, steps=1), r"have 64 tokens, but the model has 32 positions"),
        (lambda: manticore.align(made, ["some text"]), r"align: .*no language-model heads"),
    ):
        with pytest.raises(ManticoreError, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)
