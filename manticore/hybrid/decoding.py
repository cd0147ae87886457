"""Decoding: one cache for all components, the lengths they allow, and the order in which new tokens are read.

The layers of all components lie flat in one ``Cache``, so that reordering, resetting and repeating a batch reach
every one of them. Each component sees its own stretch through a view over the same layer objects, so that layer
indices inside the component stay what they are.

Shapes: B batch, T tokens, V vocabulary, n rows of a part, L their length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

from manticore.components.cache_argument import CACHE_ARGUMENT, cache_in
from manticore.components.generation import new_cache_wanted, refuse_cache_in_checkpointing
from manticore.components.state_cache import (
    CountingCache,
    EmptyLayer,
    KnownLengthCache,
    forget_sequences,
    has_states,
    select_sequences,
)
from manticore.components.token_layout import continued_mask, continued_positions, put_back, rearranged
from manticore.errors import ManticoreError
from manticore.hybrid.generation import ComponentGenerationMixin
from manticore.hybrid.inputs import Part
from manticore.hybrid.likelihoods import Posterior
from manticore.hybrid.survivors import Survivors


class ComponentCache(KnownLengthCache):
    """What one component sees: its own layers, and the number of tokens that the whole hybrid has seen."""

    def __init__(self, layers: list[Any], hybrid: HybridCache) -> None:
        super().__init__(layers=layers)
        self._hybrid = hybrid

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens cached; recurrent layers do not count them, the hybrid does."""
        return self._hybrid.seen_tokens


class HybridCache(CountingCache):
    """The cache of a hybrid.

    Args:
        components: the components' configurations.
        kept: per component the layers that the hybrid runs; the others get a placeholder, since an attention layer
            that never fills would make masks too short.
    """

    def __init__(self, components: Sequence[PreTrainedConfig], kept: Sequence[Sequence[int]]) -> None:
        self.kept = [list(layers) for layers in kept]
        self.views: list[ComponentCache] = []
        flat: list[Any] = []
        for config, layers_kept in zip(components, kept):
            layers: list[Any] = DynamicCache(config=config).layers
            chosen = set(layers_kept)
            layers = [layer if i in chosen else EmptyLayer() for i, layer in enumerate(layers)]
            flat.extend(layers)
            self.views.append(ComponentCache(layers, self))
        self.posterior: Posterior | None = None
        """Of an output that follows the text: the weights so far; None before the first token."""
        self.survivors: Survivors | None = None
        """Which components still read each sequence, where some can be dropped; what they hold is of these alone."""
        super().__init__(flat)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        if self.survivors is not None:
            forget_sequences(self.layers, len(self.survivors.live))
        self.posterior = self.survivors = None

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back.

        Raises:
            ManticoreError: a recurrent layer is kept, or weights that follow the text: neither can be taken back.
        """
        if self.posterior is not None:
            raise ManticoreError(
                "cache: weights that follow the text (output bayes) cannot be taken back by some tokens. "
                "Fix: start from the prompt again"
            )
        super().crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        if self.survivors is not None:
            read = self.survivors.read
            self._follow(torch.arange(len(read), device=read.device).repeat_interleave(repeats))
        else:
            super().batch_repeat_interleave(repeats)
            self._change_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences of the batch."""
        if self.survivors is not None:
            self._follow(indices)
        else:
            super().batch_select_indices(indices)
            self._change_rows(lambda rows: rows[indices.to(rows.device)])

    def reorder_cache(self, beam_idx: Any) -> None:
        """Put other sequences into the batch's places."""
        if self.survivors is not None:
            # a beam inherits its parent's components
            self._follow(beam_idx)
        else:
            super().reorder_cache(beam_idx)
            self._change_rows(lambda rows: rows[beam_idx.to(rows.device)])

    @property
    def sequences(self) -> int | None:
        """Sequences cached; None while there are none."""
        return super().sequences if self.survivors is None else len(self.survivors.live)

    @property
    def live(self) -> Tensor | None:
        """``[B, K]``: which components still read each sequence; None where none can be dropped, or before a token."""
        if self.survivors is None:
            return None
        live = self.survivors.live
        whole = live.new_zeros(len(live), len(self.views))
        whole[:, list(self.survivors.components)] = live
        return whole

    def keep_slots(self, k: int, kept: Tensor) -> None:
        """Let component k forget the sequences it no longer reads: ``kept`` ``[n]`` of those it holds."""
        if not bool(kept.all()):
            select_sequences(self.views[k].layers, kept.nonzero()[:, 0])

    def _follow(self, indices: Tensor) -> None:
        """Take the sequences ``indices`` ``[B']``, each component's from where it holds them."""
        assert self.survivors is not None
        indices = indices.to(self.survivors.live.device)
        self._select_layout(indices)
        for i, k in enumerate(self.survivors.components):
            held = self.survivors.live[:, i]
            slots = (held.long().cumsum(0) - 1)[indices]
            select_sequences(self.views[k].layers, slots[held[indices]])
        self.survivors = self.survivors.rows(lambda rows: rows[indices])
        self._change_rows(lambda rows: rows[indices.to(rows.device)])

    def _change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.posterior is not None:
            self.posterior = self.posterior.rows(change)


class CachedGenerationMixin(ComponentGenerationMixin):
    """What a hybrid needs to go on from cached tokens: its cache, its lengths, and the order it reads new tokens in."""

    _limits: Any
    _kept_layers: Any
    _check_positions: Any
    _named: Any

    def new_cache(self) -> HybridCache:
        """An empty cache for this hybrid; dropped layers take no room."""
        return HybridCache(self.config.components, self._kept)

    def _cache(self, given: HybridCache | None, use_cache: bool | None, batch: int) -> HybridCache | None:
        """The cache to read and extend, or None."""
        if given is None:
            return self.new_cache() if new_cache_wanted(self, bool(use_cache)) else None  # type: ignore[arg-type]
        if not isinstance(given, HybridCache) or given.kept != self._kept:
            what = "that of another hybrid" if isinstance(given, HybridCache) else f"a {type(given).__name__}"
            raise ManticoreError(
                f"forward: {CACHE_ARGUMENT} is {what} (expected a HybridCache of this one). "
                "Fix: leave it out, or use hybrid.new_cache()"
            )
        if use_cache is False:
            raise ManticoreError(f"forward: {CACHE_ARGUMENT} is given, and use_cache is False. Fix: leave one out")
        refuse_cache_in_checkpointing(self)  # type: ignore[arg-type]
        if given.sequences not in (None, batch):
            raise ManticoreError(
                f"forward: {CACHE_ARGUMENT} holds {given.sequences} sequences, input_ids {batch}. "
                "Fix: cache.batch_select_indices or batch_repeat_interleave, or a new cache"
            )
        return given

    @cached_property
    def _kept(self) -> list[list[int]]:
        """Per component the layers that run."""
        return [self._kept_layers(k) for k in range(self.config.num_components)]

    def _one_token_at_a_time(self) -> bool:
        """Whether a kept component cannot continue a cached prompt by several tokens; mixing couples them all."""
        measured = self.config.one_token_at_a_time
        kept = [k for k, runner in enumerate(self.runners) if runner is not None]
        return measured is None or any(measured[k] for k in kept)

    def _parts(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: HybridCache | None
    ) -> tuple[list[Part], Callable[[list[Tensor]], Tensor] | None]:
        """What has to be read in passes of its own, and what puts ``[n, L, …]`` of each back to ``[B, T, …]``.

        All at once wherever that is possible; then there is nothing to put back, and None in its place.
        """
        batch, tokens = input_ids.shape
        seen = cache.seen_tokens if cache is not None else 0
        one_by_one = bool(seen) and tokens > 1 and self._one_token_at_a_time()
        attention_mask = continued_mask(attention_mask, cache, batch, tokens)
        position_ids = continued_positions(position_ids, attention_mask, cache, tokens)
        pieces = rearranged(
            *(attention_mask, position_ids, batch, tokens, cache),
            stateful=self._stateful,
            one_by_one=one_by_one,
        )
        if pieces is not None:
            parts = [Part(p.take(input_ids), p.mask, p.positions(position_ids, batch)) for p in pieces]
            for part in parts:
                self._check_positions(part.input_ids.shape[1], 0, part.position_ids)
            return parts, lambda values: put_back(pieces, values, batch, tokens)
        self._check_positions(tokens, seen, position_ids)
        if not one_by_one:
            return [Part(input_ids, attention_mask, position_ids)], None
        steps = [
            Part(
                input_ids[:, t : t + 1],
                None if attention_mask is None else attention_mask[:, : seen + t + 1],
                None if position_ids is None else position_ids[:, t : t + 1],
            )
            for t in range(tokens)
        ]
        return steps, lambda values: torch.cat(values, 1)

    def _stateful(self) -> str | None:
        """The name of a component in use whose kept layers have a state or a window."""
        return next((self._named(k) for k in self.mixing.route().used if self._with_states[k]), None)

    @cached_property
    def _with_states(self) -> list[bool]:
        return [has_states(view.layers) for view in self.new_cache().views]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As transformers does; where a component's rotary embedding changes, the whole text is read anew.

        What is cached was turned in the old way. Phi-3 and PhiMoE do so too.
        """
        cache = cache_in(kwargs)
        whole = cache is not None and input_ids.shape[1] > cache.seen_tokens
        mask = kwargs.get("attention_mask")
        if whole and self.switching(mask, cache.seen_tokens, input_ids.shape[1]) is not None:
            kwargs = {**kwargs, CACHE_ARGUMENT: self.new_cache(), "next_sequence_length": None}
        return super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)

    def switching(self, attention_mask: Tensor | None, cached: int, tokens: int) -> int | None:
        """The component whose rotary embedding changes between what is cached and the end of the text, if one does.

        Args:
            attention_mask: ``[B, tokens]`` or None.
            cached: tokens that went through already, padding included.
            tokens: all of them, the new ones included.
        """
        # by itself: torch.compile cannot return from a function before all that its inner ones read is set
        return self._switching(attention_mask, cached, tokens) if cached else None

    def _switching(self, attention_mask: Tensor | None, cached: int, tokens: int) -> int | None:
        limits = [(k, self.runners[k].switch) for k in self.mixing.route().used]
        switches = {k: limit for k, limit in limits if limit is not None and limit < tokens}
        if not switches:
            return None
        before, after = cached, tokens
        if attention_mask is not None:
            before, after = (int(attention_mask[:, :end].sum(-1).max()) for end in (cached, tokens))
        return next((k for k, limit in switches.items() if before <= limit < after), None)

    def _validate_generated_length(  # type: ignore[override]
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """Refuses, before the first token, to go beyond a component's positions; the default length ends there."""
        used = [each for each in self._limits.items() if each[0] in self.mixing.route().used]
        k, limit = min(used, key=lambda each: each[1], default=(0, None))
        # the last token is not read again
        if limit is not None and generation_config.max_length - 1 > limit:
            by_default = has_default_max_length and generation_config.max_new_tokens is None
            if (settings := self.generation_config) is not None:
                # a length that a parent is configured to is nobody's wish here
                name = "max_length" if generation_config.max_new_tokens is None else "max_new_tokens"
                by_default |= (kept := getattr(settings, name)) is not None and getattr(generation_config, name) == kept
            if not by_default or input_ids_length > limit:
                raise ManticoreError(
                    f"generate: prompt and new tokens make {generation_config.max_length}, but {self._named(k)} has "
                    f"positions for {limit}. Fix: a shorter prompt, or a smaller max_new_tokens"
                )
            generation_config.max_length = limit + 1
        super()._validate_generated_length(  # type: ignore[misc]
            generation_config, input_ids_length, has_default_max_length
        )
