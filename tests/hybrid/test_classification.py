"""Hybrids that classify: the families' own classifiers at a vertex, padding, saving, what is kept and what learns."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hybrids import BLOCKS, MIXINGS, Build, at_random_weights
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import manticore
from benchmarks.tiny_families import tiny_model
from manticore import ManticoreError, ManticoreForSequenceClassification, ManticoreForTokenClassification

CLASSES = 5
# the same ids behind padding on either side, and what hides it
PADDED = [(3, 0), (0, 3)]


def sequence(hybrid: PreTrainedModel, **given: Any) -> ManticoreForSequenceClassification:
    return ManticoreForSequenceClassification.from_causal_lm(hybrid, **{"num_labels": CLASSES, **given})


def own_classifier(auto: type, parent: PreTrainedModel, head: torch.nn.Linear) -> PreTrainedModel:
    """The family's classifier with a causal model's body and the given head."""
    config = type(parent.config)(**parent.config.to_dict())
    config.num_labels = head.out_features
    model = auto.from_config(config).eval()  # type: ignore[attr-defined]
    model.base_model.load_state_dict(parent.base_model.state_dict())
    own = next(m for name, m in model.named_children() if name in ("score", "classifier"))
    own.load_state_dict(head.state_dict())
    return model


def padded(ids: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Random tokens around every sequence, and the mask that hides them."""
    around = torch.randint(3, 97, (len(ids), left + right), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    blank = torch.zeros_like(around)
    return (
        torch.cat([around[:, :left], ids, around[:, left:]], 1),
        torch.cat([blank[:, :left], mask, blank[:, left:]], 1),
    )


@pytest.mark.parametrize("mixing", MIXINGS)
def test_at_a_vertex_it_is_the_familys_own_sequence_classifier(
    build: Build, parents: list[PreTrainedModel], ids: Tensor, mixing: str
) -> None:
    supernet = sequence(build(mixing, components=3))
    mask = torch.ones_like(ids)
    mask[1, -4:] = 0
    filled = ids.where(mask != 0, 0)
    supernet.config.pad_token_id = 0
    for m in (0, 2):
        supernet.set_mixture_weights([m] * BLOCKS)
        own = own_classifier(AutoModelForSequenceClassification, parents[m], supernet.score[str(m)])  # type: ignore[arg-type]
        with torch.no_grad():
            for given in ({"input_ids": ids}, {"input_ids": filled, "attention_mask": mask}):
                assert torch.equal(supernet(**given).logits, own(**given, use_cache=False).logits)


@pytest.mark.parametrize("family", ["opt", "gpt2", "gemma2", "qwen2"])
def test_a_single_model_is_its_familys_classifier(family: str, ids: Tensor) -> None:
    """OPT's heads read projected features; Gemma 2 caps the logits of its language model, not those of classes."""
    parent = tiny_model(family, seed=5)
    made = sequence(parent)
    own = own_classifier(AutoModelForSequenceClassification, parent, made.score["0"])  # type: ignore[arg-type]
    labels = torch.tensor([0, 4])
    with torch.no_grad():
        ours, theirs = made(input_ids=ids, labels=labels), own(input_ids=ids, labels=labels, use_cache=False)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_a_vertex_is_the_familys_own_token_classifier(
    build: Build, parents: list[PreTrainedModel], ids: Tensor, family: str
) -> None:
    m = ["gpt_neo", "mamba", "llama"].index(family)
    supernet = ManticoreForTokenClassification.from_causal_lm(build(components=3), num_labels=CLASSES)
    supernet.set_mixture_weights([m] * BLOCKS)
    torch.nn.init.normal_(supernet.score[str(m)].bias)
    own = own_classifier(AutoModelForTokenClassification, parents[m], supernet.score[str(m)])  # type: ignore[arg-type]
    labels = torch.arange(ids.numel()).view_as(ids) % CLASSES
    labels[0, :3] = -100
    with torch.no_grad():
        ours, theirs = supernet(input_ids=ids, labels=labels), own(input_ids=ids, labels=labels, use_cache=False)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


@pytest.mark.parametrize("discrete", [False, True])
def test_padding_on_either_side_changes_nothing(build: Build, ids: Tensor, discrete: bool) -> None:
    made = sequence(at_random_weights(build()))
    if discrete:
        made = manticore.discretize(made, [1, 0, 1])
    with torch.no_grad():
        plain = made(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        for left, right in PADDED:
            filled, mask = padded(ids, left, right)
            torch.testing.assert_close(made(input_ids=filled, attention_mask=mask).logits, plain, atol=1e-6, rtol=0)


def test_without_a_mask_the_padding_token_tells_the_end(build: Build, ids: Tensor) -> None:
    made = sequence(build())
    filled = torch.cat([ids, torch.zeros(len(ids), 3, dtype=torch.long)], 1)
    made.config.pad_token_id = 0
    with torch.no_grad():
        assert torch.allclose(made(input_ids=filled).logits, made(input_ids=ids).logits, atol=1e-6)
        made.config.pad_token_id = None
        assert torch.equal(made(input_ids=ids[:1]).logits, made(ids[:1], torch.ones_like(ids[:1])).logits)
        with pytest.raises(ManticoreError, match=r"neither attention_mask nor config.pad_token_id"):
            made(input_ids=ids)


def test_bad_calls_are_refused_in_one_line(build: Build, ids: Tensor) -> None:
    made = sequence(build())
    for given in ({"inputs_embeds": torch.zeros(1, 2, 3)}, {"input_ids": ids, "attention_mask": ids[:, :4]}):
        with pytest.raises(ManticoreError, match=r"^forward: [^\n]+Fix: [^\n]+$"):
            made(**given)
    with pytest.raises(ManticoreError, match=r"positions for 64"):
        made(input_ids=torch.ones(1, 65, dtype=torch.long))
    for wrong in (
        {"num_labels": 0},
        {"num_labels": 3, "id2label": {0: "no", 1: "yes"}},
        {"id2label": ["no", "yes"]},
        {"id2label": {0: "no", 2: "yes"}},
        {"id2label": {0: "no", 1: "no"}},
        {"num_labels": 2, "problem_type": "classification"},
    ):
        with pytest.raises(ManticoreError, match=r"^from_causal_lm: [^\n]+(Fix: [^\n]+|Did you mean '\w+'\?)$"):
            sequence(build(), **wrong)


@pytest.mark.parametrize("kind", [ManticoreForSequenceClassification, ManticoreForTokenClassification])
@pytest.mark.parametrize("discrete", [False, True])
def test_saved_and_loaded_it_computes_the_same(
    build: Build, ids: Tensor, tmp_path: Path, kind: Any, discrete: bool
) -> None:
    made = kind.from_causal_lm(at_random_weights(build()), id2label={0: "no", 1: "yes"})
    if discrete:
        made = manticore.discretize(made)
    made.save_pretrained(tmp_path)
    auto = (
        AutoModelForSequenceClassification
        if kind is ManticoreForSequenceClassification
        else AutoModelForTokenClassification
    )
    loaded, notes = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is kind
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    assert loaded.config.label2id == {"no": 0, "yes": 1}
    assert torch.equal(loaded.mixture_weights, made.mixture_weights)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**given).logits, made(**given).logits)


def test_a_saved_causal_hybrid_loads_with_fresh_heads_and_says_so(
    build: Build, ids: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hybrid = at_random_weights(build())
    hybrid.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # the command line, run by other tests in this process, makes transformers say less
    caplog.set_level(logging.WARNING, logger="transformers")
    loaded = ManticoreForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert "score.{0, 1}.weight" in caplog.text
    assert torch.equal(loaded.mixture_weights, hybrid.mixture_weights)
    for head in loaded.score.values():
        assert 0 < head.weight.std() < 0.1
    assert torch.equal(
        loaded.component(0).get_input_embeddings().weight, hybrid.component(0).get_input_embeddings().weight
    )


def test_lm_heads_are_left_out_and_the_given_hybrid_is_left_alone(build: Build, ids: Tensor) -> None:
    hybrid = build(components=3)
    with torch.no_grad():
        before = hybrid(input_ids=ids).logits
    made = sequence(hybrid)
    llama_head = hybrid.component(2).get_output_embeddings().weight.numel()
    fresh = sum(head.weight.numel() for head in made.score.values())
    assert made.num_parameters() == hybrid.num_parameters() - llama_head + fresh
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        assert torch.equal(hybrid(input_ids=ids).logits, before)


def test_a_seed_gives_the_heads(build: Build) -> None:
    first, again, other = (sequence(build(), seed=seed).score["1"].weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_discretizing_keeps_the_head_of_the_last_block_only(build: Build, ids: Tensor, mixing: str) -> None:
    supernet = sequence(build(mixing))
    path = [0, 1, 1]
    small = manticore.discretize(supernet, path)
    assert type(small) is ManticoreForSequenceClassification
    assert list(small.score) == ["1"]
    supernet.set_mixture_weights(path)
    with torch.no_grad():
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(small(**given).logits, supernet(**given).logits)


def test_a_classifier_of_a_discretized_hybrid_and_a_new_head_for_other_classes(build: Build, ids: Tensor) -> None:
    small = manticore.discretize(build(), [0, 0, 1])
    made = sequence(small)
    assert list(made.score) == ["1"]
    assert made.config.path == [0, 0, 1]
    assert sequence(made, num_labels=2)(input_ids=ids[:1]).logits.shape == (1, 2)


def test_gradients_reach_every_head_and_component(build: Build, ids: Tensor) -> None:
    supernet = sequence(at_random_weights(build(components=3)))
    supernet(ids, torch.ones_like(ids), labels=torch.tensor([1, 2])).loss.backward()
    without = [name for name, p in supernet.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(head.weight.grad.abs().sum() > 0 for head in supernet.score.values())


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (torch.tensor([0.5, -1.0]), {"num_labels": 1}, torch.nn.MSELoss()),
        (torch.tensor([[1.0, 0, 1], [0, 0, 1]]), {"num_labels": 3}, torch.nn.BCEWithLogitsLoss()),
        (torch.tensor([2, 0]), {"num_labels": 3}, torch.nn.CrossEntropyLoss()),
    ],
)
def test_regression_several_labels_and_one(build: Build, ids: Tensor, labels: Tensor, kind: Any, expected: Any) -> None:
    made = sequence(build(), **kind)
    with torch.no_grad():
        output = made(ids, torch.ones_like(ids), labels=labels)
    assert torch.allclose(output.loss, expected(output.logits.squeeze(-1), labels))


def test_a_family_without_a_classifier_of_its_own_has_one_here(ids: Tensor) -> None:
    parent = tiny_model("mamba", seed=2)
    made = sequence(parent, num_labels=2)
    with torch.no_grad():
        features = parent.backbone(input_ids=ids).last_hidden_state[:, -1]
        logits = made(ids, torch.ones_like(ids)).logits
    assert torch.allclose(logits, features @ made.score["0"].weight.T, atol=1e-6)


def test_transformers_trainer_trains_it(build: Build, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randint(3, 97, (32, 9))
    labels = (rows[:, -1] > 50).long()
    data = Dataset.from_dict(
        {"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist(), "labels": labels.tolist()}
    )
    made = sequence(build(), num_labels=2)
    args = TrainingArguments(
        str(tmp_path), max_steps=15, per_device_train_batch_size=16, gradient_accumulation_steps=2, learning_rate=2e-2,
        report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(made, args, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5
