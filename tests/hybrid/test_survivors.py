"""Per-sequence discretization: which components stop reading a text, on every way to read it."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from copying_task import copying_task
from datasets import Dataset
from tiny_aligned import component, tokens_of
from tiny_models import seeded
from torch import Tensor
from transformers import MistralConfig

import manticore
from manticore.components.cache_argument import cache_in
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.training.scoring import score

TRIPLES = [("gpt", "mamba", "llama"), ("gpt", "llama"), ("mistral", "mamba")]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def made(name: str, seed: int) -> Any:
    """A component that is sure of itself, so that texts tell components apart."""
    if name == "mistral":
        config = MistralConfig(
            vocab_size=61,
            hidden_size=12,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=6,
        )
        model = seeded(config, seed)
    else:
        model = component(name, seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)
    return model.eval()


@functools.cache
def built(names: tuple[str, ...]) -> ManticoreForCausalLM:
    models = [made(name, seed) for seed, name in enumerate(names)]
    return manticore.combine(models, num_blocks=2, output="bayes", forgetting=0.0, check=len(set(names)) < 3).eval()


def hybrid_of(*names: str, drop_below: float | None = 0.05, drop_after: int = 6) -> ManticoreForCausalLM:
    hybrid = copy.deepcopy(built(names))
    hybrid.config.drop_below, hybrid.config.drop_after = drop_below, drop_after
    return hybrid


@functools.cache
@torch.no_grad()
def texts(names: tuple[str, ...], length: int = 26) -> Tensor:
    """A row that each component has written, and one of noise."""
    generator, rows = torch.Generator().manual_seed(3), []
    for k in range(len(names)):
        ids = tokens_of(1, 1, seed=k)
        while ids.shape[1] < length:
            predicted = built(names).component(k)(ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(predicted, 1, generator=generator)], 1)
        rows.append(ids)
    return torch.cat([*rows, tokens_of(1, length, seed=9)])


def reference(hybrid: ManticoreForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, weights and readers of one text ``[T]``, token by token in float64, as the page says."""
    count = len(hybrid.runners)
    alone = [hybrid.component(k)(ids[None], use_cache=False).logits[0].double().softmax(-1) for k in range(count)]
    weights, live = torch.full((count,), 1 / count, dtype=torch.float64), [True] * count
    found, used, readers = [], [], []
    for t, token in enumerate(ids.tolist()):
        readers.append(list(live))
        if t:
            weights = weights * torch.stack([p[t - 1, token] for p in alone])
            weights = weights / weights.sum()
        if t + 1 >= hybrid.config.drop_after:
            for k in range(count):
                if weights[k] < hybrid.config.drop_below:
                    live[k], weights[k] = False, 0.0
            weights = weights / weights.sum()
        found.append(sum(w * p[t] for w, p in zip(weights, alone)).log())
        used.append(weights.clone())
    return torch.stack(found), torch.stack(used), torch.tensor(readers)


@pytest.mark.parametrize("names", TRIPLES)
@torch.no_grad()
def test_whole_texts_are_read_as_the_definition_says(names: tuple[str, ...]) -> None:
    hybrid, ids = hybrid_of(*names), texts(names)
    found = hybrid(ids, output_weights=True)
    left = set()
    for row, text in enumerate(ids):
        logits, weights, readers = reference(hybrid, text)
        torch.testing.assert_close(found.logits[row].double(), logits, **CLOSE)
        torch.testing.assert_close(found.output_weights[row].double(), weights, **CLOSE)
        assert torch.equal(found.components_read[row], readers)
        assert readers[: hybrid.config.drop_after].all()
        left.add(tuple(readers[-1].tolist()))
    # the rows of a batch part company
    assert len(left) > 1


@pytest.mark.parametrize("names", TRIPLES)
@pytest.mark.parametrize("cut", [[1] * 26, [3, 1, 12, 10], [20, 1, 1, 4]])
@torch.no_grad()
def test_cached_agrees_with_one_pass(names: tuple[str, ...], cut: list[int]) -> None:
    hybrid, ids = hybrid_of(*names), texts(names)
    whole = hybrid(ids, output_weights=True)
    cache, outputs = hybrid.new_cache(), []
    for piece in ids.split(cut, 1):
        outputs.append(hybrid(piece, past_key_values=cache, output_weights=True))
    torch.testing.assert_close(torch.cat([each.logits for each in outputs], 1), whole.logits, **CLOSE)
    weights = torch.cat([each.output_weights for each in outputs], 1)
    torch.testing.assert_close(weights, whole.output_weights, **CLOSE)
    assert torch.equal(torch.cat([each.components_read for each in outputs], 1), whole.components_read)
    assert torch.equal(cache.live, whole.output_weights[:, -1] > 0)


def masked(mask: Tensor) -> dict[str, Tensor]:
    """With positions counted from each row's first token, as ``generate`` gives them; a GPT-Neo counts padding too."""
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


@pytest.mark.parametrize("names", TRIPLES[:2])
@torch.no_grad()
def test_a_batch_is_its_rows_and_padding_is_nothing(names: tuple[str, ...]) -> None:
    hybrid, ids = hybrid_of(*names), texts(names)
    whole, pad = hybrid(ids, output_weights=True), torch.zeros(len(ids), 3, dtype=torch.long)
    mask = torch.cat([pad, torch.ones_like(ids)], 1)
    padded = hybrid(torch.cat([pad, ids], 1), **masked(mask), output_weights=True)
    torch.testing.assert_close(padded.logits[:, 3:], whole.logits, **CLOSE)
    assert torch.equal(padded.components_read[:, 3:], whole.components_read)
    assert not padded.components_read[:, :3].any()
    for row in range(len(ids)):
        alone = hybrid(ids[row : row + 1, row:], output_weights=True)
        mask = torch.ones_like(ids)
        mask[row, :row] = 0
        among = hybrid(ids, **masked(mask), output_weights=True)
        torch.testing.assert_close(among.logits[row, row:], alone.logits[0], **CLOSE)
        assert torch.equal(among.components_read[row, row:], alone.components_read[0])


@pytest.mark.parametrize("names", TRIPLES)
@torch.no_grad()
def test_nothing_is_dropped_as_the_threshold_goes_to_zero(names: tuple[str, ...]) -> None:
    ids = texts(names)[:, :12]
    undropped = hybrid_of(*names, drop_below=None)(ids, output_weights=True)
    assert undropped.components_read is None
    found = hybrid_of(*names, drop_below=1e-37)(ids, output_weights=True)
    torch.testing.assert_close(found.output_weights, undropped.output_weights, **CLOSE)
    torch.testing.assert_close(found.logits, undropped.logits, **CLOSE)


@pytest.mark.parametrize("names", TRIPLES)
@pytest.mark.parametrize("how", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
@torch.no_grad()
def test_sequences_take_their_components_along(names: tuple[str, ...], how: str) -> None:
    hybrid, ids = hybrid_of(*names), texts(names)
    cache = hybrid.new_cache()
    hybrid(ids[:, :20], past_key_values=cache)
    rows = torch.tensor([1, 1, 0]) if how != "batch_repeat_interleave" else torch.arange(len(ids)).repeat_interleave(2)
    getattr(cache, how)(2 if how == "batch_repeat_interleave" else rows)
    assert cache.sequences == len(rows)
    for t in range(20, 24):
        step = hybrid(ids[rows, t : t + 1], past_key_values=cache, output_weights=True)
    whole = hybrid(ids[rows, :24], output_weights=True)
    torch.testing.assert_close(step.logits[:, -1], whole.logits[:, -1], **CLOSE)
    assert torch.equal(step.components_read[:, -1], whole.components_read[:, -1])
    cache.reset()
    assert cache.live is None
    others = ids[torch.arange(len(rows)) % len(ids), :9]
    again = hybrid(others, past_key_values=cache)
    torch.testing.assert_close(again.logits, hybrid(others).logits, **CLOSE)


@torch.no_grad()
def test_beams_inherit_and_generation_is_the_same_with_and_without_a_cache() -> None:
    names = TRIPLES[0]
    hybrid, ids = hybrid_of(*names), texts(names)[:, :12]
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    for how in ({}, {"num_beams": 3}):
        given = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **how}
        cached = hybrid.generate(ids, **given, return_dict_in_generate=True)
        assert torch.equal(cached.sequences, hybrid.generate(ids, **given, use_cache=False))
    live = cache_in(dict(cached)).live
    assert live.shape == (3 * len(ids), 3)
    assert (live.view(len(ids), 3, 3) == live.view(len(ids), 3, 3)[:, :1]).all()


@torch.no_grad()
def test_a_component_runs_on_the_rows_that_are_left_to_it() -> None:
    names = TRIPLES[1]
    hybrid, ids = hybrid_of(*names), texts(names)
    cache = hybrid.new_cache()
    hybrid(ids[:, :-1], past_key_values=cache)
    sizes: dict[int, int] = {}
    for k in range(2):
        first = hybrid.runners[k].layers[0]
        first.register_forward_hook(lambda _, args, out, k=k: sizes.update({k: len(args[0])}), with_kwargs=False)
    live = cache.live
    assert 0 < live[:, 0].sum() < len(ids)
    hybrid(ids[:, -1:], past_key_values=cache)
    assert sizes == {k: int(live[:, k].sum()) for k in range(2)}
    sizes.clear()
    cache.batch_select_indices(live[:, 0].nonzero()[:1, 0])
    hybrid(ids[:1, -1:], past_key_values=cache)
    assert sizes == {0: 1}


@torch.no_grad()
def test_some_logits_and_packed_documents() -> None:
    names = TRIPLES[0]
    hybrid, ids = hybrid_of(*names), texts(names)
    whole = hybrid(ids, output_weights=True)
    for keep in (2, torch.tensor([1, 8, 25])):
        found = hybrid(ids, logits_to_keep=keep, output_weights=True)
        at = slice(-2, None) if isinstance(keep, int) else keep
        torch.testing.assert_close(found.logits, whole.logits[:, at], **CLOSE)
        torch.testing.assert_close(found.output_weights, whole.output_weights[:, at], **CLOSE)
        assert torch.equal(found.components_read, whole.components_read)
    positions = torch.arange(26).repeat(2)[None]
    packed = hybrid(ids[:2].reshape(1, -1), position_ids=positions, output_weights=True)
    torch.testing.assert_close(packed.logits.view(2, 26, -1), whole.logits[:2], **CLOSE)


def test_nothing_is_dropped_while_it_trains(tmp_path: Any) -> None:
    hybrid, ids = hybrid_of(*TRIPLES[1]), texts(TRIPLES[1])
    cache = hybrid.new_cache()
    hybrid(ids, past_key_values=cache)
    hybrid.train()
    trained = hybrid(ids, labels=ids)
    trained.loss.backward()
    assert trained.components_read is None
    with pytest.raises(ManticoreError, match="has dropped components, and while a model trains none is"):
        hybrid(ids[:, :1], past_key_values=cache)
    hybrid.eval()
    hybrid.save_pretrained(tmp_path / "saved")
    loaded = ManticoreForCausalLM.from_pretrained(tmp_path / "saved")
    assert (loaded.config.drop_below, loaded.config.drop_after) == (0.05, 6)
    assert torch.equal(loaded(ids).logits, hybrid(ids).logits)
    assert manticore.discretize(hybrid, [0, 1]).config.drop_below is None


def test_an_evaluation_says_how_many_components_read_a_token() -> None:
    hybrid, ids = hybrid_of(*TRIPLES[1]), texts(TRIPLES[1])
    task = replace(copying_task(), vocab_size=61, length=26, data={"test": text_of(ids)})
    scores, _ = score(hybrid, task, "test", batch_size=2, max_examples=None)
    read = hybrid(ids).components_read
    assert scores["components_per_token"] == int(read.sum()) / ids.numel()
    assert 1 < scores["components_per_token"] < 2
    hybrid.config.drop_below = None
    assert "components_per_token" not in score(hybrid, task, "test", batch_size=2, max_examples=None)[0]


def text_of(ids: Tensor) -> Dataset:
    """Rows whose targets are the next tokens."""
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
    return Dataset.from_dict({"input_ids": ids.tolist(), "targets": targets.tolist()})


def test_a_vertex_is_the_component_itself() -> None:
    hybrid, ids = hybrid_of(*TRIPLES[1]), texts(TRIPLES[1])
    hybrid.set_mixture_weights([1, 1])
    assert torch.equal(hybrid(ids).logits, hybrid.component(1)(ids, use_cache=False).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_below": 0.0}, "drop_below is 0.0"),
        ({"drop_below": 1.0}, "drop_below is 1.0"),
        ({"drop_below": 0.5}, "drop_below is 0.5 with 2 components .expected below 1/2.. Fix: for instance 0.01"),
        ({"drop_after": 0}, "drop_after is 0"),
        ({"forgetting": 0.1}, "what is dropped cannot come back, got forgetting 0.1. Fix: leave one of the two out"),
        ({"output": "probabilities"}, "got output 'probabilities', mixing 'translated'. Fix: output: bayes"),
        ({"mixing": "translated"}, "got output 'bayes', mixing 'translated'. Fix: output: bayes, mixing: routed"),
    ],
)
def test_what_cannot_be_dropped_is_refused(options: dict[str, Any], message: str) -> None:
    given = {"output": "bayes", "drop_below": 0.01, **options}
    with pytest.raises(ManticoreError, match=message) as found:
        manticore.combine([made("gpt", 0), made("llama", 1)], num_blocks=2, check=False, **given)
    assert "\n" not in str(found.value)


def test_components_that_read_one_another_cannot_stop() -> None:
    hybrid = hybrid_of(*TRIPLES[1])
    hybrid.set_mixture_weights([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ManticoreError, match=r"read one another at these mixture weights. Fix: .*reset_mixture"):
        hybrid(tokens_of(1, 4))
