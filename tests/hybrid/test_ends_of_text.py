"""A hybrid ends its texts, and generates, by what its components' generation settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_tokenizers import CODE, PROSE, byte_level, with_prefixes
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.generation_settings import as_ends, ends_of
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.tasks.text import text

SETTINGS: list[dict[str, Any]] = [
    {"eos_token_id": [2, 7], "do_sample": True, "temperature": 0.7, "top_k": 9, "repetition_penalty": 1.3},
    {"eos_token_id": 5, "pad_token_id": 0, "no_repeat_ngram_size": 2, "max_length": 30},
    {"eos_token_id": [11, 2]},
]
FREE: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0}


def parent(family: str, seed: int, settings: dict[str, Any]) -> PreTrainedModel:
    """Weights large enough that greedy decoding does not repeat one token."""
    model = tiny_model(family, seed=seed, bos_token_id=1, pad_token_id=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else None
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.fixture(scope="module")
def three() -> list[PreTrainedModel]:
    families = ("llama", "mamba", "gpt2")
    return [parent(family, seed, settings) for seed, (family, settings) in enumerate(zip(families, SETTINGS))]


@pytest.fixture
def hybrid(three: list[PreTrainedModel]) -> ManticoreForCausalLM:
    return manticore.combine(three, num_blocks=2, check=False)


def ends(model: Any) -> set[int]:
    """The ends in both configurations, which must agree."""
    assert model.config.eos_token_id == model.generation_config.eos_token_id
    return set(ends_of(model.generation_config.eos_token_id))


def test_ends_follow_the_mixture_weights_and_the_path(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, set[int]]] = {
        "soft": ([[0.2, 0.3, 0.5]] * 2, {2, 5, 7, 11}),
        "of the first": ([0, 0], {2, 7}),
        "of the second": ([1, 1], {5}),
        "another path": ([1, 2], {2, 5, 11}),
    }
    assert ends(hybrid) == {2, 5, 7, 11}
    for name, (weights, expected) in cases.items():
        hybrid.set_mixture_weights(weights)
        assert ends(hybrid) == expected, name
        hybrid.save_pretrained(tmp_path / name)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert ends(loaded) == expected, name
        loaded.set_mixture_weights([2, 2])
        assert ends(loaded) == {2, 11}, name
        if name != "soft":
            small = manticore.discretize(hybrid, weights)
            small.save_pretrained(tmp_path / f"{name}, small")
            assert ends(small) == ends(AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}, small")) == expected
    # weights that a search has trained in place
    with torch.no_grad():
        hybrid.mixing.mixture_parameters()[0].copy_(torch.tensor([[0.0, 1.0, 0.0]] * 2))
    hybrid.save_pretrained(tmp_path / "in place")
    assert ends(AutoModelForCausalLM.from_pretrained(tmp_path / "in place")) == {5}


def test_other_settings_are_those_of_whose_tokenizer_it_is(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    hybrid.save_pretrained(tmp_path)
    small = manticore.discretize(hybrid, [0, 1])
    for model in (hybrid, AutoModelForCausalLM.from_pretrained(tmp_path), small):
        own = model.generation_config
        assert (own.do_sample, own.temperature, own.top_k, own.repetition_penalty) == (True, 0.7, 9, 1.3)
        assert own.no_repeat_ngram_size is own.max_length is None
        assert (own.bos_token_id, own.pad_token_id) == (model.config.bos_token_id, model.config.pad_token_id) == (1, 0)


@pytest.mark.parametrize("m", [0, 1, 2])
def test_at_a_vertex_generate_gives_the_parents_tokens(
    three: list[PreTrainedModel], hybrid: ManticoreForCausalLM, m: int, ids: Tensor, tmp_path: Path
) -> None:
    hybrid.set_mixture_weights([m, m])
    hybrid.save_pretrained(tmp_path)
    small = manticore.discretize(hybrid, [m, m])
    hybrids = (hybrid, small, AutoModelForCausalLM.from_pretrained(tmp_path))
    for given in ({}, {"max_new_tokens": 12}, {"do_sample": False, **FREE}, {"do_sample": False, "num_beams": 2}):
        torch.manual_seed(0)
        expected = three[m].generate(ids, **given)
        for model in hybrids:
            torch.manual_seed(0)
            assert torch.equal(model.generate(ids, **given), expected), given
    # whoever asks for something gets it
    asked = {"eos_token_id": None, "repetition_penalty": 1.0, "do_sample": False, "no_repeat_ngram_size": 0, **FREE}
    for model in hybrids:
        assert torch.equal(model.generate(ids, **asked), three[m].generate(ids, **asked))


def test_a_text_ends_at_any_of_the_parents_ends(ids: Tensor) -> None:
    chat = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():  # a head that always says 7
        chat.lm_head.weight.zero_()
        chat.lm_head.weight[7] = chat.model(ids[:1]).last_hidden_state[0, -1]
    chat.generation_config.eos_token_id = [2, 7]
    hybrid = manticore.combine([tiny_model("mamba"), chat], num_blocks=2, check=False)
    hybrid.set_mixture_weights([1, 1])
    for model in (chat, hybrid, manticore.discretize(hybrid, [1, 1])):
        assert model.generate(ids[:1], max_new_tokens=20)[0, ids.shape[1] :].tolist() == [7]


def test_what_a_person_has_set_stays(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    hybrid.generation_config.eos_token_id = 33
    hybrid.generation_config.top_k = 4
    hybrid.set_mixture_weights([1, 1])
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for model in (hybrid, manticore.discretize(hybrid, [1, 1]), loaded):
        model.generation_config  # noqa: B018  (reading it must not undo it)
        assert (model.generation_config.eos_token_id, model.generation_config.top_k) == (33, 4)
    loaded.set_mixture_weights([0, 0])
    assert loaded.generation_config.eos_token_id == 33


def test_values_on_which_parents_differ_are_left_open() -> None:
    one, other = tiny_model("llama", bos_token_id=1), tiny_model("gpt2", bos_token_id=3)
    hybrid = manticore.combine([one, other], num_blocks=2, check=False)
    assert (hybrid.config.bos_token_id, hybrid.config.eos_token_id, hybrid.config.pad_token_id) == (None, 2, 0)


def test_settings_that_no_cache_here_can_honour_and_extra_outputs_do_not_come_along(ids: Tensor) -> None:
    owner = parent(
        "llama", 0, {"cache_implementation": "static", "output_scores": True, "return_dict_in_generate": True}
    )
    owner.generation_config.prompt_lookup_num_tokens = 3
    hybrid = manticore.combine([owner, tiny_model("mamba")], num_blocks=2, check=False)
    assert hybrid.generate(ids, **FREE).shape[0] == 2


def test_a_length_that_a_parent_is_configured_to_ends_at_anothers_last_position(ids: Tensor) -> None:
    for length in ({"max_length": 4096}, {"max_new_tokens": 4096}):
        owner = parent("llama", 0, {**length, "eos_token_id": None})
        hybrid = manticore.combine([owner, tiny_model("gpt2", n_positions=16)], num_blocks=2, check=False)
        assert hybrid.generate(ids, eos_token_id=None).shape[1] == 17
        with pytest.raises(ManticoreError, match="has positions for 16"):
            hybrid.generate(ids, max_new_tokens=50)


def test_ends_of_a_reembedded_parent_are_translated_or_dropped_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = with_prefixes([*"abcdefghij", "the", "of"])
    other = with_prefixes([*"jihgfedcba", "▁the", "▁zebra", "of"])
    for name, tokenizer in {"kept": kept, "other": other}.items():
        model = tiny_model("gpt2" if name == "kept" else "mamba", vocab_size=len(tokenizer))
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.get_vocab()["a"]]
        if name == "other":
            model.generation_config.eos_token_id += [tokenizer.get_vocab()["▁zebra"]]
            model.generation_config.suppress_tokens = [4]
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    hybrid = manticore.combine([tmp_path / "kept", tmp_path / "other"], num_blocks=2, tokenizer=0, min_coverage=0)
    hybrid.set_mixture_weights([1, 1])
    assert ends(hybrid) == {kept.eos_token_id, kept.get_vocab()["a"]}
    assert "it also ends its texts with [" in caplog.text
    assert "suppress_tokens of its generation settings name its old tokens: dropped" in caplog.text
    assert "suppress_tokens" not in hybrid.config.generation[1]


def test_settings_of_a_damaged_configuration_are_refused(hybrid: ManticoreForCausalLM) -> None:
    plain = hybrid.config.to_dict()
    for change in (
        {"generation": [{}]},
        {"generation": {"eos_token_id": 2}},
        {"generation": [{"eos_token_id": ["x"]}, {}, {}]},
        {"generation_component": 3},
        {"generation_component": "0"},
    ):
        with pytest.raises(ManticoreError, match=r"config: generation(_component)? is .*Fix: "):
            type(hybrid.config)(**{**plain, **change})


def test_ends_as_transformers_writes_them() -> None:
    assert [ends_of(value) for value in (None, 3, [4, 5])] == [[], [3], [4, 5]]
    assert [as_ends(value) for value in ([], [3, 3], [4, 5, 4])] == [None, 3, [4, 5]]


def test_a_search_leaves_the_ends_of_what_it_found() -> None:
    tokenizer = byte_level()
    parents = [tiny_model(family, vocab_size=len(tokenizer)) for family in ("gpt2", "mamba")]
    for model, end in zip(parents, (7, 5)):
        model.generation_config.eos_token_id = end
    hybrid = manticore.combine(parents, num_blocks=2, tokenizer=tokenizer, check=False)
    hybrid.set_mixture_weights([1, 1])
    assert ends(hybrid) == {5}
    task = text(tokenizer, source=[*CODE, *PROSE] * 20, length=16)
    manticore.search(hybrid, task, method="darts", steps=1, batch_size=2, cpu=True)
    # read before anything else asks for the ends
    assert hybrid.config.eos_token_id == [7, 5]
