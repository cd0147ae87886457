"""Weights that follow the text: sums over any length, in any pieces, against recursions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from manticore.hybrid.likelihoods import posteriors

PRIOR = torch.tensor([0.5, 0.2, 0.3])


def scores(tokens: int, components: int = 3, rows: int = 2, scale: float = 3.0, seed: int = 0) -> Tensor:
    """Log-probabilities ``[B, T, K]`` of no model."""
    return -scale * torch.rand(rows, tokens, components, generator=torch.Generator().manual_seed(seed))


def one_by_one(values: Tensor, counts: Tensor, start: Tensor, prior: Tensor, forgetting: float) -> Tensor:
    """Bayes' rule and fixed share as they are written, token by token in float64."""
    weights, found = start.double().exp(), []
    for t in range(values.shape[1]):
        updated = weights * values[:, t].double().exp()
        updated = (1 - forgetting) * updated / updated.sum(-1, keepdim=True) + forgetting * prior.double().exp()
        weights = torch.where(counts[:, t, None], updated, weights)
        found.append(weights)
    return torch.stack(found, 1)


@pytest.mark.parametrize("forgetting", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_weights_are_those_of_the_recursion(tokens: int, forgetting: float) -> None:
    values = scores(tokens)
    counts = torch.rand(2, tokens, generator=torch.Generator().manual_seed(1)) > 0.3
    start = scores(1)[:, 0].log_softmax(-1)
    expected = one_by_one(values, counts, start, PRIOR.log(), forgetting)
    found = posteriors(values, counts, start, PRIOR.log(), forgetting)
    torch.testing.assert_close(found.exp().double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("forgetting", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_the_prior_learns_as_the_recursion_says(tokens: int, forgetting: float) -> None:
    values = scores(tokens)
    counts = torch.ones(2, tokens, dtype=torch.bool)
    # padding on the left of one text, and the first token, which nobody predicts
    counts[:, 0] = counts[0, : tokens // 2] = False
    towards = torch.rand(2, tokens, 3, generator=torch.Generator().manual_seed(2))
    gradients = []
    for follow in (posteriors, one_by_one):
        free = PRIOR.log().requires_grad_()
        prior = free.log_softmax(-1)
        found = follow(values, counts, prior.expand(2, -1), prior, forgetting)
        weights = found.exp() if follow is posteriors else found
        (gradient,) = torch.autograd.grad((weights * towards).sum(), free)
        gradients.append(gradient.double())
    torch.testing.assert_close(*gradients, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("forgetting", [0.0, 0.02])
def test_pieces_give_the_weights_of_the_whole(forgetting: float) -> None:
    values, counts = scores(50), torch.ones(2, 50, dtype=torch.bool)
    start = PRIOR.log().expand(2, -1)
    whole = posteriors(values, counts, start, PRIOR.log(), forgetting)
    pieces = []
    for first, stop in ((0, 1), (1, 18), (18, 50)):
        pieces.append(posteriors(values[:, first:stop], counts[:, first:stop], start, PRIOR.log(), forgetting))
        start = pieces[-1][:, -1]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_hundred_thousand_tokens_do_not_underflow() -> None:
    # three nats per token against the better one: likelihoods of the text end at exp(-300,000) and below
    tokens = 100_000
    values = scores(tokens, rows=1, scale=6.0)
    counts = torch.ones(1, tokens, dtype=torch.bool)
    found = posteriors(values, counts, PRIOR.log()[None], PRIOR.log())
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(found.exp().sum(-1), torch.ones(1, tokens), atol=1e-5)
    expected = (PRIOR.log().double() + values.double().cumsum(1)).log_softmax(-1)
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=1e-4)
    # a text that changes its source at the half: with forgetting the other component is found again at once
    turned = torch.cat(
        [values[:, :500] - torch.tensor([0, 5.0, 5.0]), values[:, :500] - torch.tensor([5.0, 0, 5.0])], 1
    )
    forgetful = posteriors(turned, counts[:, :1000], PRIOR.log()[None], PRIOR.log(), 0.01).exp()[0]
    stubborn = posteriors(turned, counts[:, :1000], PRIOR.log()[None], PRIOR.log()).exp()[0]
    assert float(forgetful[499, 0]) > 0.95 < float(forgetful[510, 1])
    assert float(stubborn[510, 0]) > 0.999


def test_a_component_that_rules_a_token_out_has_no_weight_behind_it_and_gives_no_nan() -> None:
    values = torch.tensor([[[-1.0, -1e30], [-1.0, -2.0]], [[-1e30, -1e30], [-1.0, -1.0]]])
    found = posteriors(values, torch.ones(2, 2, dtype=torch.bool), torch.full((2, 2), math.log(0.5)), torch.zeros(2))
    assert found.exp().tolist() == [[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]]
