"""Outputs of a hybrid: laws that hold for any parents, and a slow reference in float64 beside each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hybrids import Build, random_weights
from torch import Tensor
from transformers import PreTrainedModel

import manticore
from manticore.components.cache_argument import cache_in
from manticore.errors import ManticoreError
from manticore.hybrid import likelihoods
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.hybrid.outputs import _Mixture

JOINED = ("probabilities", "bayes", "gate")
OUTPUTS = ("logits", *JOINED)
CLOSE = {"atol": 3e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def pair(parents: list[PreTrainedModel]) -> list[PreTrainedModel]:
    """Of the parents those that are fast."""
    return [parents[0], parents[2]]


def with_output(
    build: Build, output: str, models: Sequence[PreTrainedModel], mixing: str = "routed", **given: object
) -> ManticoreForCausalLM:
    """The parents side by side, untouched by each other, at unequal output weights; a gate that does something."""
    hybrid = build(mixing, output=output, models=models, **given)
    with torch.no_grad():
        hybrid.mixing.weights.copy_(random_weights(len(models), seed=4))
        for seed, parameter in enumerate(hybrid.output.parameters()):
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
    return hybrid


def losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Of each next token in float64, ``[B, T - 1]``."""
    return -logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def reference(hybrid: ManticoreForCausalLM, parents: list[PreTrainedModel], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[T, V]`` and weights ``[T, K]`` of one row, token by token in float64."""
    prior = hybrid.mixing.weights.detach().double()
    read = [parent(ids, output_hidden_states=True) for parent in parents]
    predictions = [each.logits[0].double().softmax(-1) for each in read]
    found, used, weights, output = [], [], prior, hybrid.config.output
    for t in range(ids.shape[1]):
        if output == "bayes" and t:
            weights = weights * torch.stack([p[t - 1, ids[0, t]] for p in predictions])
            weights = weights / weights.sum()
            weights = (1 - hybrid.config.forgetting) * weights + hybrid.config.forgetting * prior
        if output == "gate":
            # the families here return what their head read as the last of the hidden states
            maps = [hybrid.output.maps[str(k)].weight.detach().double() for k in range(len(parents))]
            gate = sum(m @ each.hidden_states[-1][0, t].double() for m, each in zip(maps, read))
            weights = (prior.log() + gate + hybrid.output.bias.detach().double()).softmax(-1)
        if output == "logits":
            found.append(sum(w * each.logits[0, t].double() for w, each in zip(weights, read)))
        else:
            found.append(sum(w * p[t] for w, p in zip(weights, predictions)).log())
        used.append(weights)
    return torch.stack(found), torch.stack(used)


@pytest.mark.parametrize("given", [*({"output": each} for each in OUTPUTS), {"output": "bayes", "forgetting": 0.1}])
@torch.no_grad()
def test_each_output_is_what_its_formula_says(build: Build, parents: list, ids: Tensor, given: dict) -> None:
    hybrid = with_output(build, models=parents, **given)
    found = hybrid(ids, output_weights=True)
    assert found.output_weights.shape == (*ids.shape, 3)
    for row in range(len(ids)):
        logits, weights = reference(hybrid, parents, ids[row : row + 1])
        torch.testing.assert_close(found.output_weights[row].double(), weights, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.logits[row].double(), logits, **CLOSE)


@pytest.mark.parametrize("mixing", ["translated", "routed", "gated"])
@pytest.mark.parametrize("output", OUTPUTS)
@torch.no_grad()
def test_at_a_vertex_every_output_is_the_component(
    build: Build, pair: list, ids: Tensor, output: str, mixing: str
) -> None:
    hybrid = build(mixing, output=output, models=pair)
    for k in (0, 1):
        hybrid.set_mixture_weights([k] * hybrid.config.num_blocks)
        found = hybrid(ids, output_weights=True)
        assert torch.equal(found.logits, pair[k](ids, use_cache=False).logits)
        assert found.output_weights[..., k].eq(1).all()
        assert found.output_weights.sum() == ids.numel()


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_a_text_costs_at_most_the_best_component_and_its_share_of_the_prior(
    build: Build, pair: list, seed: int
) -> None:
    ids = torch.randint(3, 97, (3, 40), generator=torch.Generator().manual_seed(seed))
    prior = random_weights(2, seed=seed)
    alone = torch.stack([losses(parent(ids).logits, ids).sum(1) - prior[k].log() for k, parent in enumerate(pair)])
    for forgetting in (0.0, 0.01, 0.3):
        hybrid = build("routed", output="bayes", models=pair, forgetting=forgetting)
        hybrid.mixing.weights.copy_(prior)
        together = losses(hybrid(ids).logits, ids).sum(1)
        # each token but the first costs what is dealt anew before it, at most
        assert bool((together <= alone.amin(0) - (ids.shape[1] - 1) * math.log1p(-forgetting) + 1e-4).all())
        if not forgetting:
            # in fact the text has the weighted mean of the components' probabilities
            torch.testing.assert_close(together, -(-alone).logsumexp(0), atol=1e-4, rtol=0)


def test_it_forgets_unless_components_are_dropped_or_told_not_to(pair: list) -> None:
    def forgetting(**given: Any) -> float:
        return manticore.combine(pair, num_blocks=1, check=False, **given).config.forgetting

    assert forgetting(output="bayes") == 0.01
    assert forgetting(output="bayes", drop_below=0.1) == 0
    assert forgetting(output="bayes", forgetting=0.0) == 0
    assert forgetting(output="gate") == forgetting() == 0


@pytest.mark.parametrize("output", JOINED)
@torch.no_grad()
def test_components_in_another_order_change_nothing_but_the_order(
    build: Build, parents: list, ids: Tensor, output: str
) -> None:
    order = [2, 0, 1]
    hybrid = with_output(build, output, parents)
    other = build("routed", output=output, models=[parents[k] for k in order])
    other.mixing.weights.copy_(hybrid.mixing.weights[order])
    if output == "gate":
        other.output.bias.copy_(hybrid.output.bias[order])
        for place, k in enumerate(order):
            other.output.maps[str(place)].weight.copy_(hybrid.output.maps[str(k)].weight[order])
    first, second = hybrid(ids, output_weights=True), other(ids, output_weights=True)
    torch.testing.assert_close(second.logits, first.logits, **CLOSE)
    torch.testing.assert_close(second.output_weights, first.output_weights[..., order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("output", JOINED)
@torch.no_grad()
def test_identical_components_predict_as_one(build: Build, parents: list, ids: Tensor, output: str) -> None:
    hybrid = build("translated", output=output, models=[parents[0]] * 3)
    for translation in hybrid.mixing.translations():
        translation.projector.reset_identity()
    hybrid.set_mixture_weights(random_weights(hybrid.config.num_blocks, 3))
    torch.testing.assert_close(hybrid(ids).logits, parents[0](ids).logits.log_softmax(-1), **CLOSE)


@pytest.mark.parametrize("forgetting", [0.0, 0.05])
@pytest.mark.parametrize("keep", [1, "positions", "all of them, turned round"])
@torch.no_grad()
def test_few_logits_need_no_more_than_some_at_a_time(
    build: Build, pair: list, ids: Tensor, monkeypatch: pytest.MonkeyPatch, keep: int | str, forgetting: float
) -> None:
    hybrid = with_output(build, "bayes", pair, forgetting=forgetting)
    whole = hybrid(ids, output_weights=True)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    padded = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    positions = {"positions": torch.tensor([10, 2, 7]), "all of them, turned round": torch.arange(11).flip(0)}
    kept = positions.get(keep, keep)
    where = kept if isinstance(kept, Tensor) else slice(-kept, None)
    # three tokens of two rows at a time
    monkeypatch.setattr(likelihoods, "_AT_ONCE", 3 * 2 * 97)
    sizes = []
    making = hybrid._head
    monkeypatch.setattr(hybrid, "_head", lambda k, ids, hidden: (sizes.append(ids.shape[1]), making(k, ids, hidden))[1])
    few = hybrid(ids, output_weights=True, logits_to_keep=kept)
    torch.testing.assert_close(few.logits, whole.logits[:, where], **CLOSE)
    torch.testing.assert_close(few.output_weights, whole.output_weights[:, where], atol=1e-5, rtol=1e-4)
    assert sizes == [3, 3, 3, 2] * 2
    real = mask[:, where].bool()
    first, second = hybrid(ids, **padded).logits[:, where], hybrid(ids, **padded, logits_to_keep=kept).logits
    torch.testing.assert_close(second[real], first[real], **CLOSE)


@pytest.mark.parametrize("given", [{"output": "probabilities"}, {"output": "gate"}, {"output": "bayes"}])
@torch.no_grad()
def test_padding_and_packing_change_nothing(build: Build, pair: list, ids: Tensor, given: dict) -> None:
    hybrid = with_output(build, models=pair, **given)
    alone = [hybrid(ids[:1, :4], output_weights=True), hybrid(ids[:1, 4:], output_weights=True)]
    for place in ("left", "right", "middle"):
        row = ids[:1, :4]
        filling = torch.zeros(1, 3, dtype=torch.long)
        pieces = {"left": [filling, row], "right": [row, filling], "middle": [row[:, :2], filling, row[:, 2:]]}[place]
        mask = torch.cat([torch.full_like(piece, piece is not filling) for piece in pieces], 1)
        both, masks = torch.cat([torch.cat(pieces, 1), ids[1:, :7]]), torch.cat([mask, torch.ones(1, 7).long()])
        given_positions = (masks.cumsum(1) - 1).clamp_min(0)
        found = hybrid(both, attention_mask=masks, position_ids=given_positions, output_weights=True)
        torch.testing.assert_close(found.logits[0, mask[0].bool()], alone[0].logits[0], **CLOSE)
        torch.testing.assert_close(
            found.output_weights[0, mask[0].bool()], alone[0].output_weights[0], atol=1e-5, rtol=1e-4
        )
    # two documents in one row: each begins with the prior
    positions = torch.cat([torch.arange(4), torch.arange(7)])[None]
    for packed in ({"position_ids": positions}, {"seq_idx": (torch.arange(11) >= 4).int()[None]}):
        found = hybrid(ids[:1], output_weights=True, **packed)
        torch.testing.assert_close(found.logits, torch.cat([each.logits for each in alone], 1), **CLOSE)
        weights = torch.cat([each.output_weights for each in alone], 1)
        torch.testing.assert_close(found.output_weights, weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given", [{"output": "gate"}, {"output": "bayes"}, {"output": "bayes", "forgetting": 0.1}])
@torch.no_grad()
def test_a_cache_goes_on_where_the_text_was_left(
    build: Build, parents: list, ids: Tensor, left_padding: dict, given: dict
) -> None:
    hybrid = with_output(build, models=parents[:2], **given)
    mask, positions = left_padding.values()
    whole = hybrid(ids, **left_padding, output_weights=True)
    # a prompt, one token at a time, several at once; with all logits and with the last alone
    for keep in (0, 1):
        cache, start = hybrid.new_cache(), 0
        for stop in (5, 6, 7, 11):
            given_now = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop]}
            found = hybrid(
                ids[:, start:stop], **given_now, past_key_values=cache, logits_to_keep=keep, output_weights=True
            )
            real = mask[:, start:stop][:, -keep:].bool()
            expected = whole.logits[:, start:stop][:, -keep:]
            torch.testing.assert_close(found.logits[real], expected[real], **CLOSE)
            weights = whole.output_weights[:, start:stop][:, -keep:]
            torch.testing.assert_close(found.output_weights[real], weights[real], atol=1e-5, rtol=1e-4)
            cache, start = cache_in(found), stop


@torch.no_grad()
def test_beams_are_scored_as_one_pass_scores_them(build: Build, pair: list, ids: Tensor) -> None:
    hybrid = with_output(build, "bayes", pair)
    prompt = ids[:, :5]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 3, "num_return_sequences": 3}
    written = hybrid.generate(prompt, **options, return_dict_in_generate=True, output_scores=True, length_penalty=0.0)
    predicted = -losses(hybrid(written.sequences).logits, written.sequences)[:, 4:].sum(1)
    uncached = hybrid.generate(prompt, **options, use_cache=False)
    assert torch.equal(written.sequences, uncached)
    assert (written.sequences_scores - predicted).abs().max() < 1e-4
    greedy = hybrid.generate(prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(greedy, hybrid.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False))


@torch.no_grad()
def test_rows_of_a_cache_are_selected_repeated_and_forgotten(build: Build, parents: list, ids: Tensor) -> None:
    hybrid = with_output(build, "bayes", parents[:2])
    whole = hybrid(ids, output_weights=True)
    cache = cache_in(hybrid(ids[:, :5], use_cache=True))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([2, 1, 0, 3]))
    cache.batch_select_indices(torch.tensor([0, 1]))
    found = hybrid(ids[[1, 0], 5:], past_key_values=cache, output_weights=True)
    torch.testing.assert_close(found.output_weights, whole.output_weights[[1, 0], 5:], atol=1e-5, rtol=1e-4)
    with pytest.raises(ManticoreError, match="cannot be taken back"):
        cache.crop(-1)
    cache.reset()
    found = hybrid(ids, past_key_values=cache, output_weights=True)
    torch.testing.assert_close(found.output_weights, whole.output_weights, atol=1e-5, rtol=1e-4)


def test_a_gate_learns_and_likelihoods_do_not(build: Build, pair: list, ids: Tensor) -> None:
    gated, followed = with_output(build, "gate", pair), with_output(build, "bayes", pair)
    loss = losses(gated(ids).logits, ids).mean()
    loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in gated.output.parameters())
    assert not list(followed.output.parameters())
    # the gradient of bayes is that of its weights held fast
    losses(followed(ids).logits, ids).mean().backward()
    got = {name: p.grad.clone() for name, p in followed.named_parameters() if p.grad is not None}
    followed.zero_grad()
    weights = followed(ids, output_weights=True).output_weights.detach()
    alone = torch.stack([followed.component(k)(ids).logits.log_softmax(-1) for k in range(2)], -1)
    losses((alone + weights[:, :, None].log()).logsumexp(-1), ids).mean().backward()
    for name, parameter in followed.named_parameters():
        if name in got:
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-4)
    assert got


def test_a_prior_that_trains_gets_a_gradient_from_every_output(build: Build, parents: list, ids: Tensor) -> None:
    for given in ({"output": "probabilities"}, {"output": "gate"}, {"output": "bayes", "forgetting": 0.1}):
        hybrid = with_output(build, models=parents, **given)
        with torch.no_grad():
            hybrid.mixing.weights.copy_(torch.tensor([0.5, 0.5, 0.0]))
        hybrid.mixing.weights.requires_grad_(True)
        losses(hybrid(ids).logits, ids).mean().backward()
        assert bool(torch.isfinite(hybrid.mixing.weights.grad).all())
        assert float(hybrid.mixing.weights.grad.abs().max()) > 0


@pytest.mark.parametrize("shape", [(2,), (2, 3, 2)], ids=["constant weights", "weights per token"])
def test_the_gradient_of_a_mixture_is_that_of_its_formula(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1).requires_grad_(True)
    logits = [torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def mixed(weights: Tensor, *logits: Tensor) -> Tensor:
        return _Mixture.apply(weights, *(z.detach().logsumexp(-1) for z in logits), *logits)

    expected = torch.stack([z.log_softmax(-1) for z in logits], -1)
    expected = (expected + weights.reshape(*(shape[:-1] or (1, 1)), 1, 2)).logsumexp(-1)
    torch.testing.assert_close(mixed(weights, *logits), expected)
    given = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, [weights, *logits], given)
    for got, want in zip(torch.autograd.grad(mixed(weights, *logits), [weights, *logits], given), wanted):
        torch.testing.assert_close(got, want)
