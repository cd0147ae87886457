"""Twins: what they start from, cached decoding, padding, folders, hybrids with their parent, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import manticore
from benchmarks.tiny_families import VOCABULARY, tiny_model
from manticore.components.cache_argument import cache_in, named
from manticore.components.vocabulary import with_vocabulary
from manticore.errors import ManticoreError
from manticore.option_types import TwinMixers, literals
from manticore.stacks.recurrences import delta_rule, scalar_decay

MIXERS = literals(TwinMixers)
RECURRENT = [name for name in MIXERS if name != "sliding-attention"]
FULL = {"use_sliding_window": False, "sliding_window": None}
PARENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": FULL,
    "qwen3": {},
    "gpt2": {},
    "gpt_neox": {},
}
"""Grouped heads, biases of queries and keys, norms of both, one matrix for all maps as blocks and head by head."""


@pytest.fixture(scope="module")
def parents() -> dict[str, PreTrainedModel]:
    return {name: tiny_model(name, seed=1, **changes) for name, changes in PARENTS.items()}


@pytest.fixture(scope="module")
def llama(parents: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return parents["llama"]


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("first", ["parent", "twin"])
def test_a_vocabulary_of_a_task_is_drawn_as_the_parents(parents: dict[str, PreTrainedModel], first: str) -> None:
    for family in ("llama", "gpt2"):
        parent = copy.deepcopy(parents[family])
        pair = [parent, manticore.twin(parent)]
        hybrid = manticore.combine(pair if first == "parent" else pair[::-1], num_blocks=2, vocab_size=7)
        tables = [hybrid.component(k).get_input_embeddings().weight for k in range(2)]
        alone = with_vocabulary(parent, 7).get_input_embeddings().weight
        assert alone.std() > 0
        assert all(torch.equal(table, alone) for table in tables)


@torch.no_grad()
@pytest.mark.parametrize("family", PARENTS)
def test_a_window_longer_than_the_text_is_the_parent(
    family: str, parents: dict[str, PreTrainedModel], tokens: Tensor
) -> None:
    parent = parents[family]
    before = {name: tensor.clone() for name, tensor in parent.state_dict().items()}
    twin = manticore.twin(parent, "sliding-attention", window=64)
    torch.testing.assert_close(twin(tokens).logits, parent(tokens).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.state_dict().items())
    # a window within the text cuts off what the parent sees
    short = manticore.twin(parent, "sliding-attention", window=3)(tokens).logits
    expected = parent(tokens).logits
    torch.testing.assert_close(short[:, :3], expected[:, :3])
    assert not torch.allclose(short[:, 3:], expected[:, 3:])


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "mixer"), [*(("llama", mixer) for mixer in MIXERS), ("qwen3", MIXERS[0]), ("gpt2", MIXERS[0])]
)
def test_decoding_with_a_cache_and_padding_change_nothing(
    family: str, mixer: str, parents: dict[str, PreTrainedModel], tokens: Tensor
) -> None:
    # all layers; and half of them, beside which the parent's attention stays
    for layers in (None, [1, 2]):
        twin = manticore.twin(parents[family], mixer, layers=layers, window=4 if mixer not in RECURRENT else None)
        whole = twin(tokens).logits
        output = twin(tokens[:, :4], use_cache=True)
        pieces = [output.logits]
        for piece in (slice(4, 5), slice(5, 8), slice(8, 11)):
            output = twin(tokens[:, piece], use_cache=True, **named(cache_in(output)))
            pieces.append(output.logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-4)
        mask = torch.ones_like(tokens)
        mask[0, :3] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        padded = twin(tokens, attention_mask=mask, position_ids=positions).logits[0, 3:]
        torch.testing.assert_close(padded, twin(tokens[:1, 3:]).logits[0], atol=1e-5, rtol=1e-4)
    made = twin.generate(tokens[:, :5], attention_mask=mask[:, -5:], max_new_tokens=4, do_sample=False, pad_token_id=0)
    again = twin.generate(
        tokens[:, :5], attention_mask=mask[:, -5:], max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=False
    )
    assert torch.equal(made, again)


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_folder_gives_the_same_twin_and_its_parents_tensors(
    mixer: str, llama: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    llama.generation_config.max_new_tokens = 3
    twin = manticore.twin(llama, mixer, layers=[1, 3], rotary=True)
    twin.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is manticore.TwinForCausalLM
    assert torch.equal(loaded(tokens).logits, twin(tokens).logits)
    assert loaded.config.layers == [1, 3]
    assert loaded.config.rotary
    assert loaded.generation_config.max_new_tokens == 3
    assert sorted(loaded.mixers) == [1, 3]
    for name, tensor in llama.state_dict().items():
        assert torch.equal(loaded.state_dict()[f"parent.{name}"], tensor)
    half: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half(tokens).logits.float(), twin(tokens).logits, atol=0.05, rtol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_with_its_parent_it_is_an_ordinary_hybrid(mixer: str, llama: PreTrainedModel, tokens: Tensor) -> None:
    twin = manticore.twin(llama, mixer, layers=[0, 2, 3], window=4 if mixer not in RECURRENT else None)
    hybrid = manticore.combine([llama, twin], num_blocks=4, check=False)
    assert not list(hybrid.mixing.projectors.parameters())
    for k, component in enumerate((llama, twin)):
        hybrid.set_mixture_weights([k] * 4)
        assert torch.equal(hybrid(tokens).logits, component(tokens).logits)
    # one layer is the twin's, and nothing translates
    hybrid.set_mixture_weights([0, 1, 1, 0])
    expected = manticore.twin(llama, mixer, layers=[2], window=twin.config.window)
    expected.mixers[2].load_state_dict(twin.mixers[2].state_dict())
    small = manticore.discretize(hybrid, [0, 1, 1, 0])
    for made in (hybrid, small):
        torch.testing.assert_close(made(tokens).logits, expected(tokens).logits)
    long = small.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(long, expected.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0))


def test_gradients_reach_every_part_of_a_mixer_also_with_checkpointing(llama: PreTrainedModel, tokens: Tensor) -> None:
    for mixer in MIXERS:
        twin = manticore.twin(llama, mixer).train()
        found = []
        for checkpointing in (False, True):
            if checkpointing:
                twin.gradient_checkpointing_enable()
            twin.zero_grad()
            twin(tokens, labels=tokens).loss.backward()
            found.append([parameter.grad for parameter in twin.mixers[1].parameters()])
        assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in found[0]), mixer
        for one, other in zip(*found):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("length", [1, 33, 64, 70])
def test_grouped_queries_read_the_state_of_their_keys(length: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(2, sizes[0], length, *sizes[1:], generator=generator, dtype=torch.float64)

    def each(x: Tensor) -> Tensor:
        return x.repeat_interleave(3, 1)

    q, k, v = draw(6, 5), torch.nn.functional.normalize(draw(2, 5), dim=-1), draw(2, 4)
    beta, decay = draw(2).sigmoid(), -draw(2).exp()
    for found, expected in (
        (scalar_decay(q, k, v), scalar_decay(q, each(k), each(v))),
        (scalar_decay(q, k, v, decay), scalar_decay(q, each(k), each(v), each(decay))),
        (delta_rule(q, k, v, beta, decay), delta_rule(q, each(k), each(v), each(beta), each(decay))),
    ):
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(each(found[1]), expected[1])


def test_a_state_and_its_gates_belong_to_a_head_of_keys_and_values(llama: PreTrainedModel, tokens: Tensor) -> None:
    groups, width = llama.config.num_key_value_heads, llama.config.head_dim
    assert groups < llama.config.num_attention_heads
    for mixer, rows in (("gated-delta-net", width), ("mamba-2", width), ("linear-attention", 2 * width)):
        twin = manticore.twin(llama, mixer)
        cache = twin.new_cache()
        twin(tokens, use_cache=True, **named(cache))
        assert cache.layers[0].recurrent_states[0].shape[:3] == (2, groups, rows)
    assert manticore.twin(llama, "gated-delta-net").mixers[0].log_rate.shape == (groups,)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("mamba", {}, "layer 0 of family 'mamba' has no softmax attention"),
        ("llama", {"layers": [1, 4]}, "layer 4, but the parent has 4"),
        ("llama", {"layers": []}, "layers is"),
        ("llama", {"mixer": "gated-deltanet"}, "gated-delta-net"),
        ("llama", {"mixer": "mamba-2", "window": 8}, "window is 8 with mixer 'mamba-2'"),
        ("llama", {"mixer": "sliding-attention", "rotary": False}, "keeps the parent's rotations"),
        ("gpt2", {"rotary": True}, "rotates nothing"),
        ("gpt_oss", {}, "has sinks beside queries, keys and values"),
        ("qwen3_next", {}, "layer 1 of family 'qwen3_next' has an attention that is not understood"),
        ("bloom", {}, "more than queries, keys and values"),
        ("opt", {}, "does not hand what mixers need on"),
        ("mistral", {"mixer": "sliding-attention", "window": 6, "layers": [1]}, "a window of 6 tokens beside"),
    ],
)
def test_what_no_twin_can_be_made_of_is_refused_in_one_line(family: str, options: Any, message: str) -> None:
    with pytest.raises(ManticoreError) as caught:
        manticore.twin(tiny_model(family), **options)
    told = str(caught.value)
    assert message in told
    assert "\n" not in told
    assert "Fix:" in told or told.endswith("?")


def test_a_twin_of_a_twin_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ManticoreError, match="a twin itself"):
        manticore.twin(manticore.twin(llama, layers=[0]))
