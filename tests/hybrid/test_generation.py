"""Everything that transformers' ``generate`` offers works with a hybrid's cache or is refused with the reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from small_tokenizers import byte_level
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
    pipeline,
)

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM

SIX = {"max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture(scope="module", params=["supernet", "discretized"])
def hybrid(request: pytest.FixtureRequest) -> ManticoreForCausalLM:
    supernet = manticore.combine([tiny_model("gpt_neo"), tiny_model("mamba")], num_blocks=2, check=False)
    for seed, parameter in enumerate(supernet.mixing.projectors.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(seed))
    return supernet if request.param == "supernet" else manticore.discretize(supernet, [1, 0])


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[BOS]", "[EOS]", *(f"w{index}" for index in range(94))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[PAD]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", eos_token="[EOS]", padding_side="left")


def prompt(tokens: int = 9) -> Tensor:
    return torch.randint(3, 97, (2, tokens), generator=torch.Generator().manual_seed(1))


def draw(hybrid: ManticoreForCausalLM, **given: Any) -> Tensor:
    torch.manual_seed(3)
    return hybrid.generate(prompt(), **SIX, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "top_k": 9, "top_p": 0.9, "temperature": 0.7, "min_p": 0.01, "repetition_penalty": 1.2},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"num_beams": 3, "do_sample": True},
        {"guidance_scale": 1.5},
        {"no_repeat_ngram_size": 2, "bad_words_ids": [[5]]},
    ],
    ids=lambda given: "+".join(given),
)
def test_every_mode_writes_the_same_with_and_without_a_cache(
    hybrid: ManticoreForCausalLM, given: dict[str, Any]
) -> None:
    cached = draw(hybrid, **given)
    assert cached.shape == (2 * given.get("num_return_sequences", 1), 15)
    assert torch.equal(cached, draw(hybrid, use_cache=False, **given))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_a_prompt_read_in_chunks(hybrid: ManticoreForCausalLM, size: int) -> None:
    assert torch.equal(draw(hybrid, prefill_chunk_size=size), draw(hybrid))


def test_prompts_of_unequal_length_write_what_each_writes_alone(hybrid: ManticoreForCausalLM) -> None:
    ids = prompt()
    ids[0, :4] = 0
    mask = (ids != 0).long()
    for beams in (1, 3):
        both = hybrid.generate(ids, attention_mask=mask, num_beams=beams, **SIX)
        for row, start in ((0, 4), (1, 0)):
            alone = hybrid.generate(ids[row : row + 1, start:], num_beams=beams, **SIX)
            assert torch.equal(both[row, start:], alone[0])


def test_a_sequence_that_ends_leaves_the_others_alone(hybrid: ManticoreForCausalLM) -> None:
    def sampled(**given: Any) -> list[list[int]]:
        torch.manual_seed(3)
        return hybrid.generate(prompt(), max_new_tokens=6, do_sample=True, **given)[:, 9:].tolist()

    free = sampled()
    end = next(token for token in free[0][:-1] if token not in free[1])
    cut = free[0].index(end) + 1
    assert sampled(eos_token_id=end, pad_token_id=0) == [free[0][:cut] + [0] * (6 - cut), free[1]]


@torch.no_grad()
def test_scores_and_logits_are_those_of_one_pass(hybrid: ManticoreForCausalLM) -> None:
    written = hybrid.generate(
        prompt(), return_dict_in_generate=True, output_scores=True, output_logits=True, max_new_tokens=6
    )
    whole = hybrid(written.sequences[:, :-1], logits_to_keep=len(written.logits)).logits
    torch.testing.assert_close(torch.stack(written.logits, 1), whole, atol=1e-5, rtol=0)
    assert torch.equal(written.scores[0], written.logits[0])
    assert written.past_key_values.get_seq_length() == written.sequences.shape[1] - 1


@pytest.mark.parametrize("only_new", [False, True])
def test_a_conversation_goes_on_with_the_returned_cache(hybrid: ManticoreForCausalLM, only_new: bool) -> None:
    ids = prompt()
    ids[0, :3] = 0
    mask = (ids != 0).long()
    first = hybrid.generate(ids, attention_mask=mask, return_dict_in_generate=True, **SIX)
    question = torch.full((2, 4), 7)
    text = torch.cat([first.sequences, question], 1)
    mask = torch.cat([mask, torch.ones(2, text.shape[1] - mask.shape[1], dtype=torch.long)], 1)
    expected = hybrid.generate(text, attention_mask=mask, **SIX)
    # the last token of an answer has not been read yet
    given = text[:, first.past_key_values.get_seq_length() :] if only_new else text
    got = hybrid.generate(given, attention_mask=mask, past_key_values=first.past_key_values, **SIX)
    assert torch.equal(got[:, -6:], expected[:, -6:])


def test_streaming_stopping_and_lengths(hybrid: ManticoreForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    class LongEnough(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 12)

    ids = prompt()
    stopped = hybrid.generate(ids, stopping_criteria=StoppingCriteriaList([LongEnough()]), eos_token_id=None)
    assert stopped.shape == (2, 12)
    assert torch.equal(hybrid.generate(ids, max_length=12, eos_token_id=None), stopped)
    said = io.StringIO()
    with redirect_stdout(said):
        hybrid.generate(ids[:1], streamer=TextStreamer(tokenizer, skip_prompt=True), max_length=12, eos_token_id=None)
    assert said.getvalue().split() == tokenizer.decode(stopped[0, 9:]).split()


def test_stop_strings(hybrid: ManticoreForCausalLM) -> None:
    bytes_first = byte_level()
    given: dict[str, Any] = {"max_length": 14, "eos_token_id": None, "tokenizer": bytes_first}
    ids = prompt()[:1]
    whole = hybrid.generate(ids, **given)
    assert torch.equal(whole, hybrid.generate(ids, max_length=14, eos_token_id=None))
    stopped = hybrid.generate(ids, stop_strings=[bytes_first.decode(whole[0, 11])], **given)
    assert 9 < stopped.shape[1] <= 12
    assert torch.equal(stopped, whole[:, : stopped.shape[1]])
    assert hybrid.generate(ids, stop_strings=["never"], num_beams=2, **given).shape == (1, 14)


def test_a_pipeline_of_two_texts_at_once(hybrid: ManticoreForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    write = pipeline("text-generation", model=hybrid, tokenizer=tokenizer, batch_size=2)
    texts = ["w5 w6 w7", "w8"]
    given = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    both = [answer[0]["generated_text"] for answer in write(texts, **given)]
    assert both == [write(text, **given)[0]["generated_text"] for text in texts]


def test_a_custom_loop(hybrid: ManticoreForCausalLM) -> None:
    def first_token(model: Any, input_ids: Tensor, **given: Any) -> Tensor:
        return model(input_ids).logits[:, -1].argmax(-1)

    got = hybrid.generate(prompt(), custom_generate=first_token)
    assert torch.equal(got, hybrid.generate(prompt(), max_new_tokens=1, do_sample=False)[:, -1])


REFUSED: dict[str, tuple[str, Callable[[ManticoreForCausalLM], Any]]] = {
    **{
        f"{kind} cache": (
            f"cache_implementation '{kind}' cannot hold",
            lambda h, kind=kind: draw(h, cache_implementation=kind),
        )
        for kind in ("static", "quantized", "offloaded")
    },
    "assistant": (
        "take wrong guesses back",
        lambda h: h.generate(prompt()[:1], assistant_model=tiny_model("gpt_neo"), **SIX),
    ),
    "prompt lookup": ("take wrong guesses back", lambda h: h.generate(prompt()[:1], prompt_lookup_num_tokens=2, **SIX)),
    "contrastive": ("contrastive search is no longer part", lambda h: draw(h, penalty_alpha=0.6, top_k=4)),
    "groups": (
        "group beam search is no longer part",
        lambda h: draw(h, num_beams=4, num_beam_groups=2, diversity_penalty=0.5),
    ),
    "constraints": ("constrained beam search is no longer part", lambda h: draw(h, num_beams=2, force_words_ids=[[5]])),
    "dola": ("dola generation is no longer part", lambda h: draw(h, dola_layers="low")),
    "continuous batching": (
        "keeps keys and values in pages",
        lambda h: h.generate_batch([[3, 4]], generation_config=GenerationConfig(max_new_tokens=3)),
    ),
    "embeddings": ("inputs_embeds has no meaning", lambda h: h.generate(inputs_embeds=torch.zeros(1, 4, 32), **SIX)),
    "one row": (r"input_ids has shape \[9\]", lambda h: h.generate(prompt()[0], **SIX)),
    "no token": (r"input_ids has shape \[2, 0\]", lambda h: h.generate(prompt()[:, :0], **SIX)),
    "another model's cache": ("is a DynamicCache, which", lambda h: draw(h, past_key_values=DynamicCache())),
    "a tuple": ("is a tuple, which this model", lambda h: draw(h, past_key_values=((), ()))),
    "a cache and none": ("use_cache is False", lambda h: draw(h, past_key_values=h.new_cache(), use_cache=False)),
    "attentions": ("recurrent ones have none", lambda h: draw(h, output_attentions=True, return_dict_in_generate=True)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_reason(hybrid: ManticoreForCausalLM, what: str) -> None:
    reason, ask = REFUSED[what]
    with pytest.raises(ManticoreError, match=f"{reason}.* Fix: "):
        ask(hybrid)


def test_hidden_states_of_every_step(hybrid: ManticoreForCausalLM) -> None:
    given: dict[str, Any] = {"return_dict_in_generate": True, "output_hidden_states": True}
    if not hybrid.is_discretized:
        with pytest.raises(ManticoreError, match="a supernet has several of different widths"):
            draw(hybrid, **given)
        return
    states = hybrid.generate(prompt(), **SIX, **given).hidden_states
    assert len(states) == 6
    assert [state.shape for state in states[0]] == [(2, 9, 24), (2, 9, 32), (2, 9, 32)]
    assert [state.shape for state in states[1]] == [(2, 1, 24), (2, 1, 32), (2, 1, 32)]
