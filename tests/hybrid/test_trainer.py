"""A hybrid in transformers' own Trainer: train, evaluate, predict, save, resume, as any other model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.hybrid.modeling import ManticoreForCausalLM

KINDS = ("supernet", "discretized")


def hybrid(kind: str) -> ManticoreForCausalLM:
    made = manticore.combine([tiny_model("gpt_neo"), tiny_model("mamba")], num_blocks=2, check=False)
    return made if kind == "supernet" else manticore.discretize(made, [1, 0])


@pytest.fixture(scope="module")
def texts() -> Dataset:
    ids = torch.randint(3, 97, (16, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def trainer(model: ManticoreForCausalLM, texts: Dataset, folder: Path, **given: Any) -> Trainer:
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1} | given
    arguments = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **settings)
    return Trainer(model, arguments, train_dataset=texts, eval_dataset=texts)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_is_scored_and_comes_back_as_it_was_saved(kind: str, texts: Dataset, tmp_path: Path) -> None:
    made = hybrid(kind)
    weights = made.mixture_weights.clone()
    training = trainer(made, texts, tmp_path / "run", save_strategy="no")
    before = training.evaluate()["eval_loss"]
    training.train()
    after = training.evaluate()["eval_loss"]
    assert after < before
    # only a search moves them
    assert torch.equal(made.mixture_weights, weights)
    predicted = training.predict(texts)
    assert predicted.predictions.shape == (16, 8, 97)
    assert predicted.metrics["test_loss"] == pytest.approx(after)
    training.save_model(str(tmp_path / "saved"))
    again = trainer(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), texts, tmp_path / "run")
    assert again.evaluate()["eval_loss"] == pytest.approx(after)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_and_recomputed_batches_give_the_same_steps(kind: str, texts: Dataset, tmp_path: Path) -> None:
    def losses(**given: Any) -> list[float]:
        training = trainer(hybrid(kind), texts, tmp_path, save_strategy="no", **given)
        training.train()
        return [row["loss"] for row in training.state.log_history if "loss" in row]

    plain = losses()
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert losses(**halves, gradient_checkpointing=True) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_resumed_ends_with_the_same_weights(kind: str, texts: Dataset, tmp_path: Path) -> None:
    whole = hybrid(kind)
    trainer(whole, texts, tmp_path, save_strategy="steps", save_steps=2).train()
    resumed = hybrid(kind)
    trainer(resumed, texts, tmp_path, save_strategy="no").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert json.loads((tmp_path / "checkpoint-2/config.json").read_text())["model_type"] == "manticore"
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)
