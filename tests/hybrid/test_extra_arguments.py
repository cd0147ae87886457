"""What tools add to a call passes where it changes nothing; misspelt or impossible arguments are refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from datasets import Dataset
from hybrids import at_random_weights
from peft import LoraConfig, TaskType, get_peft_model
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.classification import ManticoreForPairClassification
from manticore.stacks.autoencoder import StackForAutoEncoding
from manticore.stacks.classification import StackForPairClassification

IDS = torch.randint(3, 97, (2, 8), generator=torch.Generator().manual_seed(0))


@cache
@cache
def hybrid() -> Any:
    return at_random_weights(
        manticore.combine([tiny_model("llama"), tiny_model("mamba")], num_blocks=2, check=False)
    ).eval()


@cache
def stack() -> Any:
    config = manticore.StackConfig(
        layers=["mamba", "swiglu"], vocab_size=97, hidden_size=16, max_position_embeddings=64
    )
    return manticore.StackForCausalLM(config).eval()


CAUSAL: dict[str, Callable[[], Any]] = {"hybrid": hybrid, "stack": stack}
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "hybrid, sequences": lambda: manticore.ManticoreForSequenceClassification.from_causal_lm(hybrid(), num_labels=3),
    "hybrid, tokens": lambda: manticore.ManticoreForTokenClassification.from_causal_lm(hybrid(), num_labels=3),
    "stack, sequences": lambda: manticore.StackForSequenceClassification.from_causal_lm(stack(), num_labels=3),
    "stack, tokens": lambda: manticore.StackForTokenClassification.from_causal_lm(stack(), num_labels=3),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "hybrid, pairs": lambda: ManticoreForPairClassification.from_causal_lm(hybrid(), num_labels=2),
    "stack, pairs": lambda: StackForPairClassification.from_causal_lm(stack(), num_labels=2),
    "auto-encoder": lambda: StackForAutoEncoding(stack().config).eval(),
    "body of a stack": lambda: stack().model,
}
EVERY = {**CAUSAL, **CLASSIFIERS, **OTHERS}


def called(model: Any, **given: Any) -> Any:
    pair = {"input_ids_2": IDS} if getattr(model, "documents", 1) == 2 else {}
    mask = {} if model.__class__.__name__ == "StackForAutoEncoding" else {"attention_mask": torch.ones_like(IDS)}
    masks = {"attention_mask_2": mask["attention_mask"]} if pair else {}
    return model(input_ids=IDS, **mask, **pair, **masks, **given)[0]


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_arguments_that_change_nothing_pass(name: str) -> None:
    model = EVERY[name]().eval()
    added = {
        "num_items_in_batch": torch.tensor(16),
        "token_type_ids": torch.zeros_like(IDS),
        "output_attentions": None,
        "output_hidden_states": False,
        "output_router_logits": False,
        "use_cache": False,
        "cache_position": torch.arange(8),
        "inputs_embeds": None,
        "pixel_values": None,
    }
    assert torch.equal(called(model, **added), called(model))


@pytest.mark.parametrize("name", EVERY)
def test_misspelt_arguments_are_refused_with_the_nearest_name(name: str) -> None:
    model = EVERY[name]()
    for wrong, right in {
        "atention_mask": "attention_mask",
        "input_idss": "input_ids",
        "return_dic": "return_dict",
    }.items():
        with pytest.raises(ManticoreError, match=f"unknown argument '{wrong}'. Did you mean '{right}'"):
            called(model, **{wrong: True})
    with pytest.raises(ManticoreError, match=r"unknown argument 'zzz' \(expected one of .*Fix: "):
        called(model, zzz=IDS)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"token_type_ids": torch.ones_like(IDS)}, "token_type_ids are not all 0"),
        ({"output_router_logits": True}, "output_router_logits is True"),
        ({"output_attentions": True}, "output_attentions"),
        ({"is_causal": False}, "is_causal is False"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused(name: str, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManticoreError, match=f"{reason}.* Fix: "):
        called(EVERY[name](), **given)


@pytest.mark.parametrize("name", ["hybrid, pairs", "stack, pairs", "auto-encoder"])
def test_models_of_whole_sequences_know_no_packed_documents(name: str) -> None:
    with pytest.raises(ManticoreError, match="unknown argument 'seq_idx'"):
        called(OTHERS[name](), seq_idx=torch.zeros_like(IDS))


@pytest.mark.parametrize("name", ["hybrid", "stack", "hybrid, tokens", "stack, tokens"])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"seq_idx": torch.zeros(2, 7)}, r"seq_idx has shape \[2, 7\]"),
        ({"seq_idx": [0, 1]}, "seq_idx is a list"),
        ({"cu_seq_lens_q": torch.tensor([0, 9])}, "cu_seq_lens_q goes from 0 to 9"),
        ({"cu_seq_lens_q": torch.tensor([0, 9, 9, 16])}, "rising"),
        ({"cu_seq_lens_q": torch.tensor([0])}, "cu_seq_lens_q goes from 0 to 0"),
        ({"cu_seq_lens_q": torch.tensor([0, 8, 16]), "cu_seq_lens_k": torch.tensor([0, 4, 16])}, "differ"),
        ({"max_length_q": 8}, "without cu_seq_lens_q"),
    ],
)
def test_documents_that_no_packed_batch_has_are_refused(name: str, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ManticoreError, match=f"{reason}.* Fix: "):
        called(EVERY[name](), **given)


@torch.no_grad()
def test_positions_decide_where_two_ways_of_telling_documents_apart_disagree() -> None:
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]).expand(2, -1)
    with pytest.warns(UserWarning, match="position_ids start anew elsewhere than seq_idx: they decide"):
        got = hybrid()(IDS, position_ids=position_ids, seq_idx=torch.zeros_like(IDS)).logits
    torch.testing.assert_close(got[:, 3:], hybrid()(IDS[:, 3:]).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["hybrid, tokens", "stack, tokens"])
@torch.no_grad()
def test_classes_of_packed_tokens_are_those_of_each_document_alone(name: str) -> None:
    model = CLASSIFIERS[name]().eval()
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]).expand(2, -1)
    expected = torch.cat([model(IDS[:, :3]).logits, model(IDS[:, 3:]).logits], 1)
    for told in ({"position_ids": position_ids}, {"seq_idx": (position_ids == 0).cumsum(1)}):
        torch.testing.assert_close(model(IDS, **told).logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_trainer_with_a_packing_collator(name: str, tmp_path: Any) -> None:
    model = copy.deepcopy(CAUSAL[name]())
    rows = [{"input_ids": row[:n].tolist()} for row, n in zip(IDS, (8, 3))]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = collate(rows)
    assert {"position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"} <= set(batch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        got = model(**batch, use_cache=False).logits[0]
    expected = [model(row[:n][None], use_cache=False).logits[0] for row, n in zip(IDS, (8, 3))]
    torch.testing.assert_close(got, torch.cat(expected), atol=2e-5, rtol=0)
    arguments = TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=2, learning_rate=0.0, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_list(rows), data_collator=collate)
    assert trainer.train().training_loss == pytest.approx(float(model(**batch, use_cache=False).loss), rel=1e-5)


@pytest.mark.parametrize("name", ["hybrid", "stack", "stack, sequences", "stack, tokens"])
def test_what_peft_adds(name: str) -> None:
    model = copy.deepcopy(EVERY[name]())
    task = {"hybrid": TaskType.CAUSAL_LM, "stack": TaskType.CAUSAL_LM}.get(
        name, TaskType.TOKEN_CLS if "tokens" in name else TaskType.SEQ_CLS
    )
    config = LoraConfig(r=2, task_type=task, target_modules=manticore.lora_targets(model))
    adapted = get_peft_model(model.train(), config)
    labels = {TaskType.CAUSAL_LM: IDS, TaskType.TOKEN_CLS: IDS % 3}.get(task, torch.tensor([0, 2]))
    assert torch.isfinite(adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=labels).loss)
