"""What tools ask a model for answers for what runs, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.classification import ManticoreForSequenceClassification
from manticore.hybrid.modeling import ManticoreForCausalLM

PATHS = ([0, 1], [1, 0], [1, 1])


@pytest.fixture
def hybrid() -> ManticoreForCausalLM:
    return manticore.combine([tiny_model("llama"), tiny_model("mamba")], num_blocks=2, check=False)


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_tables_are_those_that_the_path_reads(
    hybrid: ManticoreForCausalLM, path: list[int], ids: Tensor, tmp_path: Path
) -> None:
    small = manticore.discretize(hybrid, path)
    small.save_pretrained(tmp_path)
    for model in (small, AutoModelForCausalLM.from_pretrained(tmp_path)):
        read: list[str] = []
        tables: dict[str, Any] = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
        for name, table in tables.items():
            table.register_forward_hook(lambda *_, name=name, read=read: read.append(name))
        model(ids)
        assert set(read) == {"input", "output"}
        assert not model.get_input_embeddings().weight.is_meta
        assert model.resize_token_embeddings(120) is model.get_input_embeddings()
        assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 120
        # of what is kept alone
        widths = {"0": 32, "1": 24}
        assert model.config.hidden_size == max(widths[str(k)] for k in path)
        assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
        assert model.dtype == torch.float32
        assert model.device.type == "cpu"


@torch.no_grad()
def test_a_supernet_answers_by_its_mixture_weights(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    assert hybrid.get_input_embeddings() is hybrid.component(0).get_input_embeddings()
    assert hybrid.get_output_embeddings() is None
    hybrid.set_mixture_weights([1, 0])
    assert hybrid.get_input_embeddings() is hybrid.component(1).get_input_embeddings()


def test_a_classifier_answers_alike(hybrid: ManticoreForCausalLM) -> None:
    classifier = ManticoreForSequenceClassification.from_causal_lm(manticore.discretize(hybrid, [1, 0]), num_labels=2)
    assert classifier.get_input_embeddings() is classifier.component(1).get_input_embeddings()
    assert classifier.get_output_embeddings() is None


def test_noise_on_embeddings_reaches_what_runs(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    example = {"input_ids": torch.arange(3, 23), "labels": torch.arange(3, 23)}

    def loss(path: list[int] | None, alpha: float | None) -> float:
        given: dict[str, Any] = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        arguments = TrainingArguments(
            str(tmp_path), neftune_noise_alpha=alpha, max_steps=1, learning_rate=0.0, logging_strategy="no", **given
        )
        model = hybrid if path is None else manticore.discretize(hybrid, path)
        return Trainer(model, arguments, train_dataset=[example] * 8).train().training_loss  # type: ignore[arg-type]

    for path in PATHS[:2]:
        assert abs(loss(path, 1000.0) - loss(path, None)) > 1e-3
    with pytest.raises(ManticoreError, match="NEFTune puts noise on one table"):
        loss(None, 1000.0)


def test_what_a_hybrid_has_not_is_refused(hybrid: ManticoreForCausalLM) -> None:
    table = torch.nn.Embedding(97, 32)
    for model in (hybrid, manticore.discretize(hybrid, [1, 0])):
        for ask in (model.set_input_embeddings, model.set_output_embeddings, model.set_decoder):
            with pytest.raises(ManticoreError, match="Fix: "):
                ask(table)
        with pytest.raises(ManticoreError, match="no body apart from its components"):
            model.get_decoder()
