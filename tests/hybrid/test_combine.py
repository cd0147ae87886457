"""Which components may come together, and what happens to those that do."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import MIXINGS
from peft import LoraConfig, get_peft_model
from tokenizers import normalizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaForCausalLM,
)

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.classification import ManticoreForSequenceClassification
from manticore.stacks.classification import StackForSequenceClassification
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM
from manticore.training.tokenizers import train_tokenizer


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, folder: Path) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_tokenizer() -> PreTrainedTokenizerFast:
    """As many tokens as the shared one, but another merge."""
    return train_tokenizer(["zzzz zz zzzz"] * 3, 260)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"models": lambda a, b: [a]}, r"one component \(expected two or more\)"),
        ({"models": lambda a, b: []}, r"one component \(expected two or more\)"),
        ({"models": lambda a, b: a}, r"one component \(expected two or more\)"),
        ({"models": lambda a, b: "folder"}, r"one component \(expected two or more\)"),
        ({"models": lambda a, b: [a, object()]}, "a object is not a component"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"num_blocks": -2}, "num_blocks is -2"),
        ({"num_blocks": 2.0}, "num_blocks is 2.0"),
        ({"num_blocks": True}, "num_blocks is True"),
        ({"num_blocks": 5}, r"5 blocks, but component 0 \(GPTNeoForCausalLM\) has 4 layers. Fix: num_blocks <= 4"),
        ({"mixing": "transated"}, "unknown mixing 'transated'. Did you mean 'translated'?"),
        ({"projector": "linar"}, "unknown projector 'linar'. Did you mean 'linear'?"),
        ({"projector_options": {"rank": 3}}, "projector 'linear': unknown option 'rank'"),
        ({"revisions": ["main"]}, "1 revisions for 2 components"),
        ({"dtype": "wide"}, "dtype is 'wide'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_impossible_requests(
    given: dict[str, Any], reason: str, tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel
) -> None:
    given = dict(given)
    models = given.pop("models", lambda a, b: [a, b])(tiny_gpt, tiny_mamba)
    with pytest.raises(ManticoreError, match=reason) as caught:
        manticore.combine(models, **{"num_blocks": 2, **given})
    assert "\n" not in str(caught.value)


def test_a_hybrid_inside_a_hybrid_is_refused(tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel) -> None:
    hybrid = manticore.combine([tiny_gpt, tiny_mamba], num_blocks=2)
    with pytest.raises(ManticoreError, match=r"is a hybrid itself. Fix: combine all its components at once"):
        manticore.combine([hybrid, tiny_gpt], num_blocks=2)


def test_a_folder_of_a_hybrid_or_a_classifier_is_named_for_what_it_is(
    tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel, tmp_path: Path
) -> None:
    hybrid = manticore.combine([tiny_gpt, tiny_mamba], num_blocks=2)
    ManticoreForSequenceClassification.from_causal_lm(hybrid, num_labels=2).save_pretrained(tmp_path / "hybrid")
    stack = StackForCausalLM(StackConfig(layers=["swiglu"] * 2, vocab_size=tiny_gpt.config.vocab_size))
    StackForSequenceClassification.from_causal_lm(stack, num_labels=2).save_pretrained(tmp_path / "stack")
    for name, reason in (
        ("hybrid", "is a hybrid itself. Fix: "),
        ("stack", r"is a StackForSequenceClassification \(expected StackForCausalLM\). Fix: give a causal"),
    ):
        with pytest.raises(ManticoreError, match=reason):
            manticore.combine([tmp_path / name, tiny_gpt], num_blocks=2)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("kind", [BertLMHeadModel, RobertaForCausalLM])
def test_a_model_that_sees_later_tokens_is_refused(
    kind: type[PreTrainedModel], saved: bool, tiny_gpt: PreTrainedModel, tmp_path: Path
) -> None:
    family: Any = kind.config_class
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model: Any = kind(family(vocab_size=tiny_gpt.config.vocab_size, is_decoder=False, **shape))
    if saved:
        model.save_pretrained(tmp_path)
        model = tmp_path
    with pytest.raises(ManticoreError, match=r"depend on later tokens \(not causal\). Fix: ") as caught:
        manticore.combine([model, tiny_gpt], num_blocks=2)
    assert "\n" not in str(caught.value)


def test_adapters_around_a_model_are_refused(tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel) -> None:
    wrapped = get_peft_model(tiny_gpt, LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(ManticoreError, match=r"a PeftModel is not a component.*Fix: merge adapters"):
        manticore.combine([wrapped, tiny_mamba], num_blocks=2)


@torch.no_grad()
def test_tables_padded_differently_share_the_tokenizers_rows(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = {"gpt_neo": 260, "mamba": 264, "gpt_neox": 320}
    paths = [saved(tiny_model(family, vocab_size=n), tokenizer, tmp_path / family) for family, n in rows.items()]
    hybrid = manticore.combine(paths, num_blocks=2)
    assert hybrid.config.vocab_size == 260
    input_ids = torch.tensor([tokenizer("def f(x):\n").input_ids])
    for k, path in enumerate(paths):
        hybrid.set_mixture_weights([k, k])
        own = AutoModelForCausalLM.from_pretrained(path)(input_ids=input_ids, use_cache=False).logits
        assert torch.equal(hybrid(input_ids).logits, own[..., :260])
    hybrid.set_mixture_weights(torch.full((2, 3), 1 / 3))
    assert hybrid(input_ids).logits.shape[-1] == 260
    assert hybrid.tokenizer is not None
    assert hybrid.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_special_tokens_come_from_the_tokenizer(checkpoints: list[Path], tokenizer: PreTrainedTokenizerFast) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2)
    for holder in (hybrid.config, hybrid.generation_config):
        assert holder.eos_token_id == tokenizer.eos_token_id
        assert holder.pad_token_id == tokenizer.pad_token_id == 1
    # a task's own vocabulary knows none of them
    hybrid.with_vocabulary(12)
    for holder in (hybrid.config, hybrid.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (None, None, None)
    assert hybrid.tokenizer is None


def test_different_tokenizers_are_refused_unless_the_task_brings_its_own(
    checkpoints: list[Path], other_tokenizer: PreTrainedTokenizerFast, tiny_mamba: PreTrainedModel, tmp_path: Path
) -> None:
    other = saved(tiny_model("mamba", vocab_size=260), other_tokenizer, tmp_path / "other")
    with pytest.raises(
        ManticoreError, match=r"have different tokenizers.*Fix: choose checkpoints with one tokenizer, keep one"
    ):
        manticore.combine([checkpoints[0], other], num_blocks=2)
    hybrid = manticore.combine([checkpoints[0], other], num_blocks=2, vocab_size=11)
    assert hybrid.tokenizer is None
    assert hybrid(torch.tensor([[3, 10]])).logits.shape == (1, 2, 11)


def test_the_same_vocabulary_that_splits_text_otherwise_is_another_tokenizer(
    checkpoints: list[Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lower = copy.deepcopy(tokenizer)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert lower.get_vocab() == tokenizer.get_vocab()
    other = saved(tiny_model("mamba", vocab_size=260), lower, tmp_path / "lower")
    with pytest.raises(ManticoreError, match="have different tokenizers"):
        manticore.combine([checkpoints[0], other], num_blocks=2)


def test_a_tokenizer_given_by_hand_has_to_be_theirs(
    checkpoints: list[Path], tokenizer: PreTrainedTokenizerFast, other_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert manticore.combine(checkpoints, num_blocks=2, tokenizer=tokenizer).tokenizer is not None
    with pytest.raises(ManticoreError, match="and tokenizer= have different tokenizers"):
        manticore.combine(checkpoints, num_blocks=2, tokenizer=other_tokenizer)


def test_models_in_memory_need_equal_tables_or_a_tokenizer(
    checkpoints: list[Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    small, large = tiny_model("gpt_neo", vocab_size=260), tiny_model("mamba", vocab_size=264)
    with pytest.raises(ManticoreError, match=r"vocabulary sizes differ \(.*260, .*264\) and no common tokenizer"):
        manticore.combine([small, large], num_blocks=2)
    # a folder's tokenizer does not speak for a model in memory
    with pytest.raises(ManticoreError, match="vocabulary sizes differ"):
        manticore.combine([checkpoints[0], large], num_blocks=2)
    assert manticore.combine([small, large], num_blocks=2, tokenizer=tokenizer).config.vocab_size == 260
    equal = manticore.combine([checkpoints[0], tiny_model("mamba", vocab_size=260)], num_blocks=2)
    assert equal.tokenizer is not None
    assert manticore.combine([small, small], num_blocks=2).tokenizer is None


def test_a_table_too_small_for_the_tokenizer_is_refused(
    checkpoints: list[Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    short = saved(tiny_model("mamba", vocab_size=259), tokenizer, tmp_path / "short")
    with pytest.raises(ManticoreError, match="short has 259 embedding rows for 260 tokens"):
        manticore.combine([checkpoints[0], short], num_blocks=2)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_models_in_memory_are_not_touched(mixing: str, tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel) -> None:
    models = [tiny_gpt.train(), tiny_mamba]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    configurations = [model.config.to_dict() for model in models]
    hybrid = manticore.combine(models, num_blocks=2, mixing=mixing, vocab_size=20).train()
    optimizer = torch.optim.SGD(hybrid.parameters(), lr=1.0)
    input_ids = torch.arange(20).view(2, 10)
    hybrid(input_ids, labels=input_ids).loss.backward()
    optimizer.step()
    manticore.discretize(hybrid, [0, 1])
    assert tiny_gpt.training
    assert not tiny_mamba.training
    for model, state, configuration in zip(models, before, configurations):
        assert model.config.to_dict() == configuration
        assert all(parameter.grad is None for parameter in model.parameters())
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_the_seed_decides_everything_that_is_drawn(tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel) -> None:
    def drawn(seed: int, noise: int) -> dict[str, Tensor]:
        torch.manual_seed(noise)
        hybrid = manticore.combine(
            [tiny_gpt, tiny_mamba], num_blocks=2, projector_options={"init": "default"}, vocab_size=12, seed=seed
        )
        return hybrid.state_dict()

    first, again, other = drawn(0, 1), drawn(0, 2), drawn(5, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert "component_0.transformer.wte.weight" in changed
    assert {name for name in first if name.startswith("mixing.projectors.")} - {
        # between embeddings, which were reset with them
        name
        for name in first
        if name.startswith("mixing.projectors.0_")
    } <= changed
    assert not any(".h." in name or ".layers." in name for name in changed)


def test_the_callers_randomness_is_left_alone(tiny_gpt: PreTrainedModel, tiny_mamba: PreTrainedModel) -> None:
    state = torch.get_rng_state()
    manticore.combine([tiny_gpt, tiny_mamba], num_blocks=2, vocab_size=12, projector_options={"init": "default"})
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_one_precision_for_all(tmp_path: Path, ids: Tensor) -> None:
    paths = [tmp_path / "gpt", tmp_path / "mamba"]
    tiny_model("gpt_neo").bfloat16().save_pretrained(paths[0])
    tiny_model("mamba").save_pretrained(paths[1])
    hybrid = manticore.combine(paths, num_blocks=2)
    assert {parameter.dtype for parameter in hybrid.parameters()} == {torch.float32}
    half = manticore.combine(paths, num_blocks=2, dtype="bfloat16")
    probabilities = {id(parameter) for parameter in half.mixing.mixture_parameters()}
    for parameter in half.parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in probabilities else torch.bfloat16)
    assert half.config.dtype == torch.bfloat16
    # a model in memory may have been converted after it was configured
    converted = manticore.combine([tiny_model("gpt_neo").bfloat16(), tiny_model("mamba").bfloat16()], num_blocks=2)
    assert [component.dtype for component in converted.config.components] == [torch.bfloat16] * 2
    assert half(ids).logits.isfinite().all()


def test_a_checkpoint_that_is_not_used_up(checkpoints: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "gpt"
    shutil.copytree(checkpoints[0], folder)
    hybrid = manticore.combine([folder, checkpoints[1]], num_blocks=2)
    shutil.rmtree(folder)
    assert hybrid.generate(torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2).shape == (1, 4)
