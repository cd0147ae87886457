"""Holes, padding behind the tokens and packed documents give the logits of the documents alone, or are refused.

Recurrent layers pass their state over all three, windows count what is hidden, and some families of attention see from
one packed document into the next; each pair here holds some of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.cache_argument import cache_in, named
from manticore.errors import ManticoreError
from manticore.kernels.mamba import fast_scan


def supernet(*families: str) -> Any:
    hybrid = manticore.combine([tiny_model(name, seed=k) for k, name in enumerate(families)], num_blocks=2, check=False)
    hybrid.set_mixture_weights([[0.6, 0.4], [0.3, 0.7]])
    return hybrid


def stack(*layers: str) -> Any:
    torch.manual_seed(0)
    options = {"sliding-attention": {"window": 3}}
    config = manticore.StackConfig(
        layers=list(layers),
        vocab_size=97,
        hidden_size=32,
        max_position_embeddings=64,
        layer_options={name: options[name] for name in layers if name in options},
    )
    return manticore.StackForCausalLM(config).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama+mamba": lambda: supernet("llama", "mamba"),
    # tables of positions, of which opt counts the mask; distances of bloom, for which positions do not exist
    "opt+bloom": lambda: supernet("opt", "bloom"),
    # windows, and distances that count what is hidden
    "mistral+mpt": lambda: supernet("mistral", "mpt"),
    "gpt_neo+mamba2": lambda: supernet("gpt_neo", "mamba2"),
    "path of falcon_h1, lfm2": lambda: manticore.discretize(supernet("falcon_h1", "lfm2"), [0, 1]),
    "jamba alone": lambda: manticore.discretize(supernet("gpt2", "jamba"), [1, 1]),
    "stack with states": lambda: stack("gated-delta-net", "sliding-attention", "mamba", "rwkv6-channel-mixer"),
    "stack of attention": lambda: stack("mh-attention", "swiglu"),
}
STATEFUL = [name for name in MODELS if name not in ("opt+bloom", "stack of attention")]
EQUAL = {"atol": 2e-5, "rtol": 0}


@cache
def built(name: str) -> Any:
    return MODELS[name]()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return built(request.param)


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(7))


def alone(model: Any, *documents: Tensor) -> list[Tensor]:
    return [model(document[None], use_cache=False).logits[0] for document in documents]


LENGTHS = [[5, 4, 1, 2], [3, 9]]


def packed() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Ids and positions ``[2, 12]``, and every document."""
    ids = tokens(2, 12)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    return ids, positions, [document for row, sizes in zip(ids, LENGTHS) for document in row.split(sizes)]


@torch.no_grad()
def test_packed_documents_have_the_logits_of_each_alone(model: Any) -> None:
    ids, position_ids, documents = packed()
    expected = torch.cat(alone(model, *documents))
    # stacks return a cache where nobody says anything, but not of documents
    for attention_mask, asked in ((None, {}), (torch.ones_like(ids), {"use_cache": False})):
        got = model(ids, attention_mask=attention_mask, position_ids=position_ids, **asked).logits
        torch.testing.assert_close(got.flatten(0, 1), expected, **EQUAL)


@torch.no_grad()
def test_packing_told_in_other_ways_and_with_padding_behind(model: Any) -> None:
    ids, position_ids, documents = packed()
    seq_idx = (position_ids == 0).cumsum(1).int() - 1
    ends = torch.tensor([0, 5, 9, 10, 12, 15, 24], dtype=torch.int32)
    longest = {"max_length_q": 9, "max_length_k": 9}
    both = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    expected = torch.cat(alone(model, *documents))
    for told in ({"seq_idx": seq_idx}, {**both, **longest}, {"position_ids": position_ids, "seq_idx": seq_idx, **both}):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            got = model(ids, use_cache=False, **told).logits
        torch.testing.assert_close(got.flatten(0, 1), expected, **EQUAL)
    attention_mask = torch.ones_like(ids)
    attention_mask[0, 10:] = 0
    got = model(ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False).logits
    torch.testing.assert_close(got[attention_mask.bool()], torch.cat([expected[:10], expected[12:]]), **EQUAL)


def test_training_on_packed_documents_is_training_on_each_alone(model: Any) -> None:
    ids, position_ids, documents = packed()
    labels = torch.where(position_ids == 0, -100, ids)
    weights = [p for p in model.parameters() if p.requires_grad]
    loss = model(ids, position_ids=position_ids, labels=labels, use_cache=False).loss
    got = torch.autograd.grad(loss, weights, allow_unused=True)
    each = [model(d[None], labels=d[None], use_cache=False).loss * (len(d) - 1) for d in documents if len(d) > 1]
    total = sum(each) / (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(loss, total, **EQUAL)
    for mine, theirs in zip(got, torch.autograd.grad(total, weights, allow_unused=True)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0]])


@torch.no_grad()
@pytest.mark.parametrize("with_positions", [True, False])
def test_tokens_around_holes_have_the_logits_of_the_text_without_them(model: Any, with_positions: bool) -> None:
    ids = tokens(3, 9)
    positions = {"position_ids": (MASK.cumsum(1) - 1).clamp_min(0)} if with_positions else {}
    got = model(ids, attention_mask=MASK, use_cache=False, **positions).logits
    expected = alone(model, *(row[keep] for row, keep in zip(ids, MASK.bool())))
    torch.testing.assert_close(got[MASK.bool()], torch.cat(expected), **EQUAL)


@torch.no_grad()
@pytest.mark.parametrize("with_positions", [True, False])
def test_a_right_padded_prompt_is_continued_with_its_cache(model: Any, with_positions: bool) -> None:
    ids = tokens(3, 15)
    mask = torch.cat([MASK, torch.ones(3, 6, dtype=torch.long)], 1)
    all_positions = (mask.cumsum(1) - 1).clamp_min(0)
    expected = alone(model, *(row[keep] for row, keep in zip(ids, mask.bool())))
    cache, pieces = model.new_cache(), []
    # as the scan of this package does, so that several tokens can be read after cached ones
    with fast_scan(model):
        for start, stop in ((0, 9), (9, 10), (10, 14), (14, 15)):
            given = {"position_ids": all_positions[:, start:stop]} if with_positions else {}
            # a mask left out stands for tokens without padding, also behind a padded prompt
            shown = {"attention_mask": mask[:, :stop]} if start != 10 else {}
            pieces.append(model(ids[:, start:stop], use_cache=True, **shown, **named(cache), **given).logits)
    torch.testing.assert_close(torch.cat(pieces, 1)[mask.bool()], torch.cat(expected), **EQUAL)
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert cache.layout.tolist() == [[False] * 3 + [True] * 6, [False] * 2 + [True] * 7]
    cache.reset()
    assert cache.layout is None


def test_generation_from_a_prompt_with_a_hole(model: Any) -> None:
    ids, mask = tokens(2, 9), MASK[:2]
    six = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    for beams in (1, 3):
        got = model.generate(ids, attention_mask=mask, num_beams=beams, **six)[:, 9:]
        for row, keep, mine in zip(ids, mask.bool(), got):
            text = row[keep][None]
            assert torch.equal(model.generate(text, num_beams=beams, **six)[0, text.shape[1] :], mine)


def test_what_follows_padding_is_not_made_up(model: Any) -> None:
    with pytest.raises(
        ManticoreError, match=r"generate: attention_mask has padding behind the last token.* Fix: pad on"
    ):
        model.generate(tokens(3, 9), attention_mask=MASK, max_new_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("name", STATEFUL)
def test_padding_behind_or_among_cached_tokens_is_refused_by_name(name: str) -> None:
    model = built(name)
    ids = tokens(2, 6)
    cache = cache_in(model(ids, use_cache=True))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 7:] = 0
    with pytest.raises(
        ManticoreError, match=r"attention_mask has padding .* which (component|this stack).* Fix: pad on"
    ):
        model(ids[:, :3], attention_mask=mask, use_cache=True, **named(cache))
    with pytest.raises(
        ManticoreError, match=r"attention_mask has padding .* which (component|this stack).* Fix: pad on"
    ):
        model(ids[:, :1], attention_mask=mask[:, [0, 1, 2, 3, 4, 5, 7]], use_cache=True, **named(cache))


@torch.no_grad()
def test_documents_in_one_row_share_no_cache(model: Any) -> None:
    ids, position_ids, _ = packed()
    for told in ({"position_ids": position_ids}, {"seq_idx": (position_ids == 0).cumsum(1)}):
        with pytest.raises(ManticoreError, match=r"position_ids start anew inside a row.* Fix: a row per document"):
            model(ids, use_cache=True, **told)


@torch.no_grad()
def test_padding_behind_is_harmless_where_nothing_follows(model: Any) -> None:
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0
    got = model(ids, attention_mask=mask, use_cache=False).logits[0, :5]
    torch.testing.assert_close(got, alone(model, ids[0, :5])[0], **EQUAL)


def test_decoding_looks_at_no_mask(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    from manticore.components import token_layout

    own = token_layout.decided
    monkeypatch.setattr(token_layout, "decided", lambda *flags: looks.append(flags) or own(*flags))
    ids, mask = tokens(2, 9), MASK[[0, 0]]
    model.generate(ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert len(looks) == 1


@settings(max_examples=15, deadline=None)
@given(st.data())
@torch.no_grad()
def test_any_packing_of_any_rows(data: st.DataObject) -> None:
    model = built("llama+mamba")
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 10))
    mask = torch.tensor(
        data.draw(
            st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=batch, max_size=batch)
        )
    )
    begins = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=batch, max_size=batch))
    )
    ids, positions, documents, where = tokens(batch, length), torch.zeros(batch, length, dtype=torch.long), [], []
    for b in range(batch):
        count = 0
        for t in range(length):
            if not mask[b, t]:
                continue
            if begins[b, t] or count == 0:
                count = 0
                documents.append([])
            positions[b, t] = count
            count += 1
            documents[-1].append(int(ids[b, t]))
            where.append((b, t))
    got = model(ids, attention_mask=mask, position_ids=positions).logits
    assert bool(torch.isfinite(got).all())
    for (b, t), expected in zip(where, [row for d in documents for row in alone(model, torch.tensor(d))[0]]):
        torch.testing.assert_close(got[b, t], expected, **EQUAL)
