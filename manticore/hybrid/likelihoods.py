"""How likely each component has found the text so far, and the weights that follow.

Bayesian interpolation (Bayesian model averaging; Hoeting et al. 1999): the posterior weight of component k after
tokens x_1 … x_t is its prior weight times ``p_k(x_2 | x_1) … p_k(x_t | x_1 … x_{t-1})``, normalised. The first token of
a text is predicted by nobody, and counts nothing; neither does padding. So the loss of a text is at most the best
component's plus ``log(1 / prior) / T``. With ``forgetting`` f, after each token ``w = (1 - f) w + f prior``
(fixed-share, Herbster and Warmuth 1998): a text may change its source.

All in float32 and in logarithms, so that nothing underflows, however long the text is. Likelihoods take no gradient.

Shapes: B batch, T tokens, V vocabulary, K components in use, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from manticore.hybrid.inputs import Part
    from manticore.hybrid.mixing import Features

_AT_ONCE = 2**24
"""Logits of one component that are made at once where not all are asked for."""

LEAST = -1e30
"""A prediction that rules a token out: finite, so that sums over many tokens stay numbers."""


@dataclass(frozen=True)
class Posterior:
    """What a cache keeps of the text before, one row per sequence."""

    log_weights: Tensor
    """``[B, K]`` in float32, normalised."""
    last: dict[int, Tensor]
    """Component → ``[B, V]`` in float32: the log-probabilities of the token to come."""
    begun: Tensor
    """``[B]``: whether the sequence has a token yet."""

    def rows(self, change: Callable[[Tensor], Tensor]) -> Posterior:
        """With the sequences that ``change`` makes of ``[B, …]``."""
        return replace(
            self,
            log_weights=change(self.log_weights),
            last={k: change(value) for k, value in self.last.items()},
            begun=change(self.begun),
        )


@dataclass(frozen=True)
class Scored:
    """How the components have predicted the tokens of a pass."""

    values: Tensor
    """``[B, T, K]``: the log-probability of each token; what is on padding and first tokens is nobody's."""
    counts: Tensor
    """``[B, T]``: whether it was predicted at all."""
    last: dict[int, Tensor]
    """As of :class:`Posterior`, after this pass; empty where nobody goes on from here."""
    begun: Tensor
    """``[B]``."""


@torch.no_grad()
def scores_of(
    part: Part,
    features: Features,
    logits: Features,
    normalizers: Features,
    head: Callable[[int, Tensor, Tensor], Tensor],
    before: Posterior | None,
    *,
    vocab_size: int,
    last: bool,
) -> Scored:
    """How likely each component has found the tokens of a pass.

    Where not all logits were asked for, they are made again some positions at a time, by each family's own head.

    Args:
        part: the tokens ``[B, T]`` and their mask.
        features: component → ``[B, T, D]``: what its norm and head were given.
        logits: component → ``[B, T, V]``; empty where not all were asked for.
        normalizers: component → ``[B, T]``, of the same logits.
        head: component, ids ``[B, n]``, features ``[B, n, D]`` → logits ``[B, n, V]``.
        before: what the cache has kept; None at the beginning.
        vocab_size: V.
        last: whether to keep the prediction of the token to come.
    """
    ids, mask = part.input_ids, part.attention_mask
    batch, tokens = ids.shape
    places = torch.arange(tokens, device=ids.device).expand(batch, -1)
    if mask is None:
        real = torch.ones_like(ids, dtype=torch.bool)
        latest, following = places, places + 1
    else:
        real = mask[:, mask.shape[1] - tokens :].bool()
        latest = torch.where(real, places, -1).cummax(1).values
        # the next token behind each place, T where there is none
        behind = torch.where(real, places, tokens).flip(1).cummin(1).values.flip(1)
        following = functional.pad(behind[:, 1:], (0, 1), value=tokens)
    previous = functional.pad(latest[:, :-1], (1, 0), value=-1)
    begun = torch.zeros_like(real[:, 0]) if before is None else before.begun.to(ids.device)
    counts = real & ((previous >= 0) | begun[:, None])
    targets = ids.gather(1, following.clamp_max(tokens - 1))
    ends = latest[:, -1]

    values, kept = [], {}
    for k, hidden in features.items():
        given = logits.get(k)
        if given is not None:
            predicted = _picked(given, targets, normalizers[k])
        else:
            step = max(1, _AT_ONCE // (batch * vocab_size))
            spans = [slice(start, start + step) for start in range(0, tokens, step)]
            predicted = torch.cat([_picked(head(k, ids[:, s], hidden[:, s]), targets[:, s]) for s in spans], 1)
        of_tokens = predicted.gather(1, previous.clamp_min(0).to(predicted.device))
        if before is not None:
            # the first token here was predicted by the last of those before
            carried = before.last[k].gather(1, ids.to(before.last[k].device)).to(of_tokens.device)
            of_tokens = torch.where(previous.to(of_tokens.device) >= 0, of_tokens, carried)
        values.append(of_tokens.to(ids.device))
        if last:
            rows, at = torch.arange(batch, device=ids.device), ends.clamp_min(0)
            if given is not None:
                final = given[rows.to(given.device), at.to(given.device)]
            else:
                final = head(k, ids[rows, at][:, None], hidden[rows.to(hidden.device), at.to(hidden.device)][:, None])
                final = final[:, 0]
            kept[k] = final.float().log_softmax(-1)
            if before is not None:
                kept[k] = torch.where((ends >= 0).to(final.device)[:, None], kept[k], before.last[k].to(final.device))
    return Scored(torch.stack(values, -1).clamp_min(LEAST), counts, kept, begun | (ends >= 0))


def log_normalizers(logits: Tensor) -> Tensor:
    """``[…, V]`` → ``[…]`` in float32: what makes log-probabilities of logits."""
    return logits.float().logsumexp(-1)


def _picked(logits: Tensor, targets: Tensor, normalizers: Tensor | None = None) -> Tensor:
    """Log-probabilities ``[B, n]`` in float32 of targets ``[B, n]``."""
    found = logits.gather(-1, targets.to(logits.device)[..., None])[..., 0]
    return found.float() - (log_normalizers(logits) if normalizers is None else normalizers)


def posteriors(scores: Tensor, counts: Tensor, start: Tensor, prior: Tensor, forgetting: float = 0.0) -> Tensor:
    """Log-weights after each token, ``[B, T, K]``, normalised.

    Args:
        scores: ``[B, T, K]``: the log-probability that each component gave each token.
        counts: ``[B, T]``: whether it counts.
        start: ``[B, K]``: log-weights before the first of them.
        prior: ``[K]`` log-weights, which forgetting goes back to.
        forgetting: f, the share of the weights that is dealt anew after each token.
    """
    # against the best of each token: so sums stay small where they matter
    steps = torch.where(counts[..., None], scores - scores.amax(-1, keepdim=True), 0.0).to(start.device)
    if forgetting == 0:
        return (start[:, None] + steps.cumsum(1)).log_softmax(-1)
    return _shared(steps, counts.to(start.device), start, prior, forgetting)


def _shared(steps: Tensor, counts: Tensor, start: Tensor, prior: Tensor, forgetting: float) -> Tensor:
    """With forgetting each token is a matrix ``((1 - f) I + f prior 1ᵀ) diag(likelihood)`` on the weights.

    Spans of about √T tokens: the product of each span's matrices leads to the weights before the next one, and from
    these all spans go on token by token, side by side. All in logarithms.
    """
    tokens = steps.shape[1]
    span = 1 << (tokens.bit_length() // 2)
    kept, share = math.log1p(-forgetting), prior + math.log(forgetting)
    missing = -tokens % span
    steps = functional.pad(steps, (0, 0, 0, missing)).unflatten(1, (-1, span))
    counts = functional.pad(counts, (0, missing)).unflatten(1, (-1, span))[..., None]

    # finite zeros: sums of none but infinite ones have no gradient
    identity = torch.full((len(prior), len(prior)), LEAST, device=prior.device).fill_diagonal_(0.0)
    dealt = torch.logaddexp(identity + kept, share[:, None])
    # what the last span leads to is not asked for
    product = torch.where(counts[:, :-1, ..., None], dealt + steps[:, :-1, ..., None, :], identity)
    while product.shape[2] > 1:
        product = _product(product[:, :, 1::2], product[:, :, ::2])
    before = [start]
    for matrix in product[:, :, 0].unbind(1):
        before.append((matrix + before[-1][:, None]).logsumexp(-1).log_softmax(-1))

    weights, found = torch.stack(before, 1), []
    for step, real in zip(steps.unbind(2), counts.unbind(2)):
        weights = torch.where(real, torch.logaddexp((weights + step).log_softmax(-1) + kept, share), weights)
        found.append(weights)
    return torch.stack(found, 2).flatten(1, 2)[:, :tokens]


def _product(after: Tensor, before: Tensor) -> Tensor:
    """Of matrices ``[…, K, K]`` in logarithms, up to a factor per matrix."""
    product = (after[..., :, :, None] + before[..., None, :, :]).logsumexp(-2)
    return product - product.amax((-2, -1), keepdim=True)
