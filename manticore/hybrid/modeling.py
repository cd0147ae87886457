"""The hybrid as a causal language model: logits, the cache, generation.

Letters: B batch, T tokens, D width, V vocabulary, K components, N blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast

from manticore.components.cache_argument import CACHE_ARGUMENT, named, one_cache
from manticore.components.extra_arguments import loss_arguments, positions_of_documents
from manticore.components.generation import new_cache_wanted, refuse_cache_in_checkpointing
from manticore.components.runner import Recording
from manticore.components.state_cache import has_states
from manticore.components.token_layout import continued_mask, continued_positions, put_back, rearranged
from manticore.errors import ManticoreError
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.decoding import HybridCache
from manticore.hybrid.generation import ComponentGenerationMixin
from manticore.hybrid.inputs import check_inputs, check_outputs, require_ids
from manticore.hybrid.mixing import Features
from manticore.hybrid.pretrained import ManticorePreTrainedModel
from manticore.hybrid.released import released_logits


class ManticoreForCausalLM(ManticorePreTrainedModel, ComponentGenerationMixin):
    """A supernet of K causal LMs, or, once discretized, one path through their blocks.

    :func:`manticore.combine` builds a hybrid, ``from_pretrained`` loads one; arguments as in the base class.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: HybridCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of every next token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, cached + T]``, 0 on padding.
            position_ids: ``[B, T]``; None leaves each component to its own rule.
            labels: ``[B, T]``, shifted here as everywhere in transformers; -100 is ignored.
            logits_to_keep: the last so many positions only, or a tensor of positions; 0 keeps all.
            use_cache: whether to return a cache; None returns one only where one was given, since plain evaluation has
                no use for it. Never in training with gradient checkpointing.
            past_key_values: the cache of the tokens before these; transformers calls it ``cache`` from 5.24 on.
            inputs_embeds: refused.
            output_hidden_states: of a discretized hybrid what enters each block, ``[B, T, width]`` of the block's
                component, and what leaves the last, before the last norm: N + 1 in all.
            output_attentions: refused.
            return_dict: False returns a tuple; None follows the configuration.
            cache: another name for ``past_key_values``.
            kwargs: ``num_items_in_batch`` for the loss; ``seq_idx``, ``cu_seq_lens_q`` and their kin of packed
                documents, which like ``position_ids`` that start anew give the logits of the documents alone; and
                what tools add that changes nothing.

        Returns:
            ``logits`` ``[B, T, V]``, with labels ``loss``, with ``use_cache`` the cache, as
            ``past_key_values`` or, from transformers 5.24 on, ``cache``.

        Raises:
            ManticoreError: ``inputs_embeds`` (K components have K embeddings of different widths), attentions, hidden
                states of a supernet, shapes or ids that do not fit, another cache than this hybrid's, more tokens
                than a component has positions for, unknown arguments, documents in one row or padding behind cached
                tokens together with a cache, or adapters on maps that cannot carry them.
        """
        self.check_adapters()
        input_ids = require_ids(input_ids, inputs_embeds)
        for_loss = loss_arguments(type(self).forward, kwargs)
        states = self._states(output_hidden_states, output_attentions)
        cache = self._cache(one_cache(past_key_values, cache), use_cache, len(input_ids))
        seen = cache.seen_tokens if cache is not None else 0
        check_inputs(input_ids, attention_mask, position_ids, cached=seen, vocab_size=self.config.vocab_size)
        check_outputs(input_ids, labels, logits_to_keep)
        if (k := self.switching(attention_mask, seen, seen + input_ids.shape[1])) is not None:
            raise ManticoreError(
                f"forward: the rotary embedding of {self._named(k)} changes after {self._runner(k).switch} tokens, "
                f"{seen} are cached as it was before. Fix: the whole text again, without {CACHE_ARGUMENT}"
            )
        position_ids = positions_of_documents(kwargs, position_ids, input_ids.shape, input_ids.device)
        logits = self._laid_out(input_ids, attention_mask, position_ids, logits_to_keep, cache, states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **for_loss)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=None if states is None else tuple(states),  # type: ignore[arg-type]
            **named(cache),
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _states(self, hidden_states: bool | None, attentions: bool | None) -> list[Tensor] | None:
        """Where hidden states are collected, if they are asked for."""
        if self.config.output_attentions if attentions is None else attentions:
            raise ManticoreError(
                "forward: output_attentions, but components differ in heads and layers, and recurrent ones have none. "
                "Fix: ask one component, hybrid.component(k)"
            )
        if not (self.config.output_hidden_states if hidden_states is None else hidden_states):
            return None
        if not self.is_discretized:
            raise ManticoreError(
                "forward: output_hidden_states, but a supernet has several of different widths in every block. "
                "Fix: discretize it, or ask one component, hybrid.component(k)"
            )
        return []

    def _laid_out(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        logits_to_keep: int | Tensor,
        cache: HybridCache | None,
        states: list[Tensor] | None,
    ) -> Tensor:
        """``[B, t, V]``, as of rows of one document each with padding in front."""
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
        if pieces is None:
            self._check_positions(tokens, seen, position_ids)
            run = self._step_by_step if one_by_one else self._logits
            return run(input_ids, attention_mask, position_ids, logits_to_keep, cache, states)  # type: ignore[arg-type]
        logits, collected = [], []
        for piece in pieces:
            inside: list[Tensor] | None = None if states is None else []
            positions = piece.positions(position_ids, batch)
            self._check_positions(positions.shape[1], 0, positions)
            logits.append(self._logits(piece.take(input_ids), piece.mask, positions, 0, cache, inside))
            collected.append(inside)
        if states is not None:
            states.extend(put_back(pieces, each, batch, tokens) for each in zip(*collected))  # type: ignore[arg-type]
        return _last(put_back(pieces, logits, batch, tokens), logits_to_keep)

    def _stateful(self) -> str | None:
        """The name of a component in use whose kept layers have a state or a window."""
        return next((self._named(k) for k in self.mixing.route().used if self._with_states[k]), None)

    @cached_property
    def _with_states(self) -> list[bool]:
        return [has_states(view.layers) for view in self.new_cache().views]

    def _logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        logits_to_keep: int | Tensor,
        cache: HybridCache | None,
        states: list[Tensor] | None,
    ) -> Tensor:
        """One pass: ``[B, t, V]``; hidden states are added to ``states``."""
        route = self.mixing.route()
        heads = route.blocks[-1]
        inputs = {k: self._inputs(k, input_ids, attention_mask, position_ids, cache) for k in route.used}
        if self.config.released:
            logits = released_logits(self, inputs, logits_to_keep, states)
            if cache is not None:
                cache.seen_tokens += input_ids.shape[1]
            return logits
        recordings = {k: self._runner(k).record(**given) for k, given in inputs.items() if k not in heads}
        outputs: Features = {}
        self._descend(heads, inputs, recordings, {}, outputs, logits_to_keep, states)
        if cache is not None:
            cache.seen_tokens += input_ids.shape[1]
        return self.mixing.mixed({k: outputs[k][..., : self.config.vocab_size] for k in heads})

    def _descend(
        self,
        heads: Sequence[int],
        inputs: Mapping[int, dict[str, Any]],
        recordings: dict[int, Recording],
        final: Features,
        outputs: Features,
        logits_to_keep: int | Tensor,
        states: list[Tensor] | None,
    ) -> None:
        """Fill ``outputs`` with the logits of each component in ``heads``.

        Each one's own forward runs up to its last layer and waits there, one inside the other; in the innermost all
        blocks run, and on the way out each gets its features for norm and head.
        """
        if not heads:
            final.update(self.mixing.head_inputs(self._mix(recordings, states)))
            return
        k, *others = heads

        def middle(recording: Recording) -> Tensor:
            recordings[k] = recording
            self._descend(others, inputs, recordings, final, outputs, logits_to_keep, states)
            return final[k]

        outputs[k] = self._runner(k).logits(middle, **inputs[k], logits_to_keep=logits_to_keep)

    def new_cache(self) -> HybridCache:
        """An empty cache for this hybrid; dropped layers take no room."""
        return HybridCache(self.config.components, self._kept)

    def _cache(self, given: HybridCache | None, use_cache: bool | None, batch: int) -> HybridCache | None:
        """The cache to read and extend, or None."""
        if given is None:
            return self.new_cache() if new_cache_wanted(self, bool(use_cache)) else None
        if not isinstance(given, HybridCache) or given.kept != self._kept:
            what = "that of another hybrid" if isinstance(given, HybridCache) else f"a {type(given).__name__}"
            raise ManticoreError(
                f"forward: {CACHE_ARGUMENT} is {what} (expected a HybridCache of this one). "
                "Fix: leave it out, or use hybrid.new_cache()"
            )
        if use_cache is False:
            raise ManticoreError(
                f"forward: {CACHE_ARGUMENT} is given, and use_cache is False. Fix: leave one of them out"
            )
        refuse_cache_in_checkpointing(self)
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

    def _step_by_step(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        logits_to_keep: int | Tensor,
        cache: HybridCache,
        states: list[Tensor] | None,
    ) -> Tensor:
        """As :meth:`_logits`, one token after the other."""
        logits, steps, seen = [], [], cache.seen_tokens
        for t in range(input_ids.shape[1]):
            step: list[Tensor] | None = None if states is None else []
            mask = None if attention_mask is None else attention_mask[:, : seen + t + 1]
            positions = None if position_ids is None else position_ids[:, t : t + 1]
            logits.append(self._logits(input_ids[:, t : t + 1], mask, positions, 0, cache, step))
            steps.append(step)
        if states is not None:
            states.extend(torch.cat(pieces, 1) for pieces in zip(*steps))  # type: ignore[arg-type]
        return _last(torch.cat(logits, 1), logits_to_keep)

    def get_output_embeddings(self) -> Any:
        """The head of a discretized hybrid's last component; None of a supernet, whose components have one each."""
        path = self.config.path
        return None if path is None else self.component(path[-1]).get_output_embeddings()

    def _validate_generated_length(  # type: ignore[override]
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """Refuses, before the first token, to go beyond a component's positions; the default length ends there."""
        used = [each for each in self._limits.items() if each[0] in self.mixing.route().used]
        k, limit = min(used, key=lambda each: each[1], default=(0, None))
        # the last token is not read again
        if limit is not None and generation_config.max_length - 1 > limit:
            by_default = has_default_max_length and generation_config.max_new_tokens is None
            if (own := self.generation_config) is not None:
                # a length that a parent is configured to is nobody's wish here
                name = "max_length" if generation_config.max_new_tokens is None else "max_new_tokens"
                by_default |= getattr(own, name) is not None and getattr(generation_config, name) == getattr(own, name)
            if not by_default or input_ids_length > limit:
                raise ManticoreError(
                    f"generate: prompt and new tokens make {generation_config.max_length}, but {self._named(k)} has "
                    f"positions for {limit}. Fix: a shorter prompt, or a smaller max_new_tokens"
                )
            generation_config.max_length = limit + 1
        super()._validate_generated_length(  # type: ignore[misc]
            generation_config, input_ids_length, has_default_max_length
        )


def _last(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """``[B, T, V]`` at the last so many positions, or at those of a tensor; 0 keeps all."""
    return logits[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


def build(config: ManticoreConfig, components: Sequence[PreTrainedModel]) -> ManticoreForCausalLM:
    """A hybrid around loaded components; only projectors and weights are initialised."""
    with no_init_weights():
        hybrid = ManticoreForCausalLM(config, components)
    for projector in hybrid.mixing.projectors.values():
        projector.to(components[0].dtype).reset_parameters()  # type: ignore[operator]
    hybrid.mixing.reset_mixture()
    return hybrid
