"""Per-sequence discretization: a component that a text has made unlikely stops reading it.

Weights that follow the text (output ``bayes``) soon leave one component of a hybrid whose components know different
things. With ``drop_below`` ε and ``drop_after`` n of the configuration, for each sequence by itself:

- After each token from the n-th on (padding does not count), every component that still reads the sequence and whose
  posterior weight is below ε is dropped. Its weight becomes 0, those of the others are normalised again, and it reads
  no further token of this sequence. The likeliest always stays, since ε is below 1/K.
- So what is dropped, the weights and the logits depend on the text alone: not on the batch, on padding, on how the text
  is cut into passes, or on whether a cache is used.
- That is final, so that there is nothing to go back to where a text changes its source: it is refused with forgetting.

While a model trains nothing is dropped, without gradients or with them. Only components that run on their own can
stop, which is routed mixing at R = I.

Compute is saved from one pass to the next: in decoding after each token, with all components' caches holding the
sequences that they still read. A whole text is read by all components up to n tokens, and the rest, a stretch at a
time, by those that are left; a component that cannot go on from a cached beginning by several tokens (Mamba) reads a
text again from its beginning once it is the only one left.

Shapes: B batch, T tokens, L of a stretch, n rows that a component reads, t tokens whose logits are asked for, V
vocabulary, K components, C of them in use, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manticore.hybrid.inputs import Part
from manticore.hybrid.likelihoods import LEAST, Posterior, log_normalizers, scores_of
from manticore.hybrid.mixing import Features, Route

if TYPE_CHECKING:
    from manticore.hybrid.decoding import HybridCache
    from manticore.hybrid.modeling import ManticoreForCausalLM

_STRETCH = 32
"""Tokens read at a time, at least, while a sequence has more than one component left; then twice as many."""


def first_stretch(tokens: int, decided: int) -> int:
    """Up to where all components read a text that is decided after so many tokens at the earliest."""
    return min(tokens, max(decided, _STRETCH))


def next_stretch(read: int, tokens: int) -> int:
    """Up to where a text is read next."""
    return min(tokens, read + max(read, _STRETCH))


@dataclass(frozen=True)
class Survivors:
    """Which components still read each sequence."""

    live: Tensor
    """``[B, C]``."""
    read: Tensor
    """``[B]``: tokens so far, padding not counted."""
    components: tuple[int, ...]
    """Those in use."""

    def rows(self, change: Callable[[Tensor], Tensor]) -> Survivors:
        """With the sequences that ``change`` makes of ``[B, …]``."""
        return replace(self, live=change(self.live), read=change(self.read))

    def slots(self, i: int) -> Tensor:
        """``[n]``: the sequences that the i-th still reads; its cache holds these, in this order."""
        return self.live[:, i].nonzero()[:, 0]


@dataclass(frozen=True)
class Predicted:
    """What the components that are left make of some tokens."""

    logits: Tensor
    """``[B, t, V]``: log-probabilities, in float32."""
    weights: Tensor
    """``[B, t, K]``."""
    components_read: Tensor
    """``[B, T, K]``: whether a component has read a token."""


def decided(
    log_weights: Tensor, real: Tensor, before: Survivors, drop_below: float, drop_after: int
) -> tuple[Tensor, Tensor]:
    """Who is left after each token, and the weights: ``[B, L, C]`` each, weights as logarithms.

    Args:
        log_weights: ``[B, L, C]``: of the text up to each token, up to a constant per token.
        real: ``[B, L]``, False on padding.
        before: who was left before these tokens.
        drop_below: ε.
        drop_after: n.
    """
    batch, tokens, components = log_weights.shape
    may = ((before.read[:, None] + real.cumsum(1)) >= drop_after) & real
    live = before.live[:, None].expand(-1, tokens, -1)
    places = torch.arange(tokens, device=live.device)

    def normalised() -> Tensor:
        return log_weights.masked_fill(~live, -math.inf).log_softmax(-1)

    weights = normalised()
    # a round for the first loss of every sequence, then for its second: all but one component can be lost
    for _ in range(components - 1):
        low = live & (weights < math.log(drop_below)) & may[..., None]
        first = torch.where(low.any(-1), places, tokens).amin(1)
        if bool((first == tokens).all()):
            break
        lost = low[torch.arange(batch, device=live.device), first.clamp_max(tokens - 1)]
        live = live & ~(lost[:, None] & (places >= first[:, None])[..., None])
        weights = normalised()
    return weights, live


@dataclass
class Alone:
    """One component by itself, in place of a mixing: what routed mixing at R = I is to it."""

    component: int
    num_blocks: int

    def route(self) -> Route:
        """This component, everywhere."""
        k = self.component
        return Route([k], [[k]] * self.num_blocks, [k])

    def enter(self, boundary: int, features: Features, targets: Iterable[int]) -> Features:
        """What left the block before."""
        return features

    def head_inputs(self, features: Features) -> Features:
        """What left the last block."""
        return features


def read_by_survivors(
    hybrid: ManticoreForCausalLM, part: Part, cache: HybridCache | None, log_prior: Tensor, kept: slice | Tensor | None
) -> Predicted:
    """What a hybrid with ``drop_below`` predicts.

    Args:
        hybrid: in evaluation mode, routed at R = I.
        part: the tokens ``[B, T]``.
        cache: of the text before, and to go on from; None where nothing is kept.
        log_prior: ``[C]``: logarithms of the output weights of the components in use.
        kept: the positions whose logits are asked for; None stands for all.
    """
    return _Reading(hybrid, part, cache, log_prior, kept).predicted()


class _Reading:
    """One pass over the tokens of a part, a stretch at a time."""

    def __init__(
        self,
        hybrid: ManticoreForCausalLM,
        part: Part,
        cache: HybridCache | None,
        log_prior: Tensor,
        kept: slice | Tensor | None,
    ) -> None:
        ids, mask = part.input_ids, part.attention_mask
        batch, self.tokens = ids.shape
        self.hybrid, self.part, self.given, self.every = hybrid, part, cache, kept is None
        self.used = hybrid.mixing.route().used
        self.real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, -self.tokens :].bool()
        columns = torch.arange(self.tokens, device=ids.device)
        self.columns = columns if kept is None else columns[kept]
        measured = hybrid.config.one_token_at_a_time or [True] * hybrid.config.num_components
        self.goes_on = {k: self.tokens == 1 or not measured[k] for k in self.used}
        # a text that nobody goes on from needs no cache, but its stretches do
        stretches = cache is None and self.tokens > 1 and any(self.goes_on.values())
        self.cache = hybrid.new_cache() if stretches else cache
        self.seen = 0 if cache is None else cache.seen_tokens
        self.posterior = None if cache is None else cache.posterior
        before = None if cache is None else cache.survivors
        if before is None:
            everyone = torch.ones(batch, len(self.used), dtype=torch.bool, device=ids.device)
            before = Survivors(everyone, torch.zeros_like(ids[:, 0]), tuple(self.used))
        self.survivors = before
        start = log_prior.expand(batch, -1) if self.posterior is None else self.posterior.log_weights
        self.reached = start.masked_fill(~before.live, -math.inf)
        """``[B, C]``: log-weights so far."""
        self.log_weights = start.new_zeros(batch, self.tokens, len(self.used))
        self.has_read = torch.zeros_like(self.log_weights, dtype=torch.bool)
        self.logits: Tensor | None = None
        self.done = torch.zeros_like(ids[:, 0])
        """``[B]``: up to which column each sequence is predicted."""

    def predicted(self) -> Predicted:
        start, stop = 0, self._first_stop()
        while start < self.tokens:
            if not self._undecided().any():
                stop = self.tokens
            self._read(start, stop)
            start, stop = stop, next_stretch(stop, self.tokens)
        assert self.logits is not None
        if self.given is not None:
            self.given.posterior, self.given.survivors = self.posterior, self.survivors
        weights = self.log_weights.exp()[:, self.columns]
        return Predicted(self.logits, self._of_all(weights), self._of_all(self.has_read))

    def _undecided(self) -> Tensor:
        """``[B]``: whether a sequence has more than one component left."""
        return self.survivors.live.sum(1) > 1

    def _first_stop(self) -> int:
        """The column up to which every sequence has read as much as a decision needs."""
        if self.given is not None and not all(self.goes_on.values()):
            # its cache has to hold what a component cannot take in later
            return self.tokens
        missing = self.hybrid.config.drop_after - self.survivors.read
        short = (self.real.cumsum(1) < missing[:, None]).sum(1)
        reached = short[short < self.tokens]
        return first_stretch(self.tokens, int(reached.max()) + 1) if len(reached) else self.tokens

    def _read(self, start: int, stop: int) -> None:
        """Read the columns from start to stop, and let everyone go who is dropped meanwhile."""
        before, undecided = self.survivors, self._undecided()
        batch, real = len(undecided), self.real[:, start:stop]
        scores = self.reached.new_zeros(batch, stop - start, len(self.used))
        counts, processed = torch.zeros_like(real), torch.zeros_like(undecided)
        last: Features = {}
        made = []
        for i, k in enumerate(self.used):
            rows, anew = before.slots(i), self._reads_anew(k)
            if anew and stop < self.tokens:
                # once it is alone, it reads the whole text in one go, at the end
                rows = rows[undecided[rows]]
            if not len(rows):
                continue
            begin = 0 if anew else start
            logits, hidden = self._run(k, rows, begin, stop)
            normalizers = log_normalizers(logits)
            made.append((i, rows, begin, logits, normalizers))
            processed[rows] = True
            at = undecided[rows].nonzero()[:, 0]
            if not len(at):
                continue
            judged = rows[at]
            scored = scores_of(
                self._rows(judged, start, stop),
                {k: hidden[at, start - begin :]},
                {k: logits[at, start - begin :]} if self.every else {},
                {k: normalizers[at, start - begin :]} if self.every else {},
                self.hybrid._head,
                self._posterior_of(k, judged),
                vocab_size=logits.shape[-1],
                last=self.given is not None or stop < self.tokens,
            )
            scores[judged, :, i] = scored.values[..., 0].to(scores)
            counts[judged] = scored.counts
            if k in scored.last:
                last[k] = scored.last[k].new_zeros(batch, logits.shape[-1])
                last[k][judged] = scored.last[k]
        live = self._decide(scores, counts, start, stop)
        for i, rows, begin, *predictions in made:
            self._write(i, rows, begin, stop, *predictions)
        self.done[processed] = stop
        self.survivors = Survivors(live[:, -1], before.read + real.sum(1), before.components)
        self.reached = self.log_weights[:, stop - 1]
        self.posterior = Posterior(self.reached, last, (before.read > 0) | real.any(1))
        if self.cache is not None:
            self.cache.seen_tokens += stop - start
            for i, k in enumerate(self.used):
                if not self._reads_anew(k):
                    self.cache.keep_slots(k, self.survivors.live[before.slots(i), i])

    def _reads_anew(self, k: int) -> bool:
        """Whether component k cannot go on from its first stretch, and has to begin again."""
        return self.given is None and not self.goes_on[k]

    def _rows(self, rows: Tensor, start: int, stop: int) -> Part:
        """Some sequences of the part, from one column to another; the mask from the very beginning."""
        ids, mask, positions = self.part
        every = len(rows) == len(ids)
        if positions is not None:
            positions = positions[:, start:stop]
            positions = positions if every or len(positions) == 1 else positions[rows]
        if mask is not None:
            mask = mask[:, : self.seen + stop]
            mask = mask if every else mask[rows]
        ids = ids[:, start:stop]
        return Part(ids if every else ids[rows], mask, positions)

    def _posterior_of(self, k: int, rows: Tensor) -> Posterior | None:
        """What is known before this stretch of some sequences, for component k alone."""
        known = self.posterior
        if known is None:
            return None
        return Posterior(known.log_weights[rows], {k: known.last[k][rows]}, known.begun[rows])

    def _run(self, k: int, rows: Tensor, begin: int, stop: int) -> tuple[Tensor, Tensor]:
        """Component k alone: logits ``[n, …, V]`` of the columns asked for, features ``[n, stop - begin, D]``."""
        wanted: int | Tensor = 0 if self.every else self.columns[self._within(begin, stop)] - begin
        cache = None if self._reads_anew(k) or self.cache is None else self.cache
        return self.hybrid.alone(k, self._rows(rows, begin, stop), cache, wanted)

    def _within(self, begin: int, stop: int) -> Tensor:
        """Which of the columns asked for lie there."""
        return ((self.columns >= begin) & (self.columns < stop)).nonzero()[:, 0]

    def _decide(self, scores: Tensor, counts: Tensor, start: int, stop: int) -> Tensor:
        """Note weights and readers of these columns; who is left after each, ``[B, L, C]``."""
        before, config, real = self.survivors, self.hybrid.config, self.real[:, start:stop]
        if not self._undecided().any():
            # most steps of decoding: one component each, whose weight is 1
            live = before.live[:, None].expand(-1, stop - start, -1)
            self.log_weights[:, start:stop] = torch.where(live, 0.0, -math.inf)
            self.has_read[:, start:stop] = live & real[..., None]
            return live
        scores = scores.masked_fill(~before.live[:, None], LEAST)
        # against the best of each token: so sums stay small where they matter
        steps = torch.where(counts[..., None], scores - scores.amax(-1, keepdim=True), 0.0)
        total = self.reached[:, None] + steps.cumsum(1)
        weights, live = decided(total, real, before, config.drop_below, config.drop_after)
        self.log_weights[:, start:stop] = weights
        readers = torch.cat([before.live[:, None], live[:, :-1]], 1)
        self.has_read[:, start:stop] = readers & real[..., None]
        return live

    def _write(self, i: int, rows: Tensor, begin: int, stop: int, logits: Tensor, normalizers: Tensor) -> None:
        """Add what one component predicts of some sequences."""
        at = self._within(begin, stop)
        columns, batch = self.columns[at], len(self.done)
        weights = self.log_weights[rows[:, None], columns, i]
        term = logits + (weights - normalizers)[..., None]
        if self.logits is None:
            if len(rows) == batch and len(at) == len(self.columns):
                self.logits = term
                return
            self.logits = term.new_full((batch, len(self.columns), term.shape[-1]), -math.inf)
        # what was read before, and now again
        fresh = (columns >= self.done[rows][:, None])[..., None]
        there = self.logits[rows[:, None], at]
        self.logits[rows[:, None], at] = torch.where(fresh, torch.logaddexp(there, term), there)

    def _of_all(self, values: Tensor) -> Tensor:
        """``[…, C]`` → ``[…, K]``; what is not in use has none."""
        whole = values.new_zeros(*values.shape[:-1], self.hybrid.config.num_components)
        whole[..., self.used] = values
        return whole
