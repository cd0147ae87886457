"""The twin: its parent's whole model, with other mixers in some of its layers.

The parent's own code runs: embeddings, positions, norms, MLPs, head. What the mixers need beside the family's own
arguments, a hook on the parent's body adds, and the family hands it through to its layers.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from manticore.components.adapters import AdapterGuard
from manticore.components.cache_argument import CACHE_NAMES, cache_argument, cache_in, named, one_cache
from manticore.components.extra_arguments import loss_arguments, positions_of_documents
from manticore.components.generation import (
    OwnCacheGenerationMixin,
    new_cache_wanted,
    refuse_cache_in_checkpointing,
)
from manticore.components.runner import Runner
from manticore.components.state_cache import CountingCache, has_states
from manticore.components.token_layout import continued_mask, continued_positions, holds_documents, put_back, rearranged
from manticore.errors import ManticoreError
from manticore.twins.attention_maps import attention_of
from manticore.twins.configuration import TwinConfig
from manticore.twins.mixers import MIXERS, PADDING, WINDOW_MASK, TwinMixer


class TwinForCausalLM(AdapterGuard, OwnCacheGenerationMixin):
    """A causal language model whose token mixers in some layers are not its parent's: see :func:`manticore.twin`.

    Args:
        config: the twin's configuration.
        parent: the parent's model, which is taken over and changed; None builds one from its configuration.

    Raises:
        ManticoreError: a layer has no attention, or one that is not understood.
    """

    config_class = TwinConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [*CACHE_NAMES, "layer_past"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TwinConfig, parent: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.parent: PreTrainedModel = AutoModelForCausalLM.from_config(config.parent) if parent is None else parent
        # one object, so that what is changed in one place holds in both
        config.__dict__["parent"] = self.parent.config
        layers = Runner(self.parent).layers
        for index in config.layers or ():
            exchange(layers[index], index, config)
        self.parent.base_model.register_forward_pre_hook(HandsOn(config.window), with_kwargs=True)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.fitted: Any = None
        """How far its mixers are from the parent's attention, a :class:`~manticore.twins.fit.TwinFit`; not saved."""
        self.post_init()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Save weights, configuration and, where it has one in memory, the parent's tokenizer."""
        super().save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @property
    def base_model(self) -> nn.Module:  # type: ignore[override]
        """The parent's body."""
        return self.parent.base_model

    @property
    def mixers(self) -> dict[int, TwinMixer]:
        """The exchanged mixers, by their layers."""
        found = {module.layer_idx: module for module in self.modules() if isinstance(module, TwinMixer)}
        return dict(sorted(found.items()))

    @property
    def _is_stateful(self) -> bool:  # type: ignore[override]
        return "linear_attention" in self.config.layer_types

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of every next token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, cached + T]``, 0 on padding.
            position_ids: ``[B, T]``; None leaves them to the parent's family.
            past_key_values: the cache of the tokens before these; transformers calls it ``cache`` from 5.24 on.
            inputs_embeds: ``[B, T, D]`` in place of ids.
            labels: ``[B, T]``, shifted here as everywhere in transformers; -100 is ignored.
            use_cache: whether to return a cache; None follows the configuration, but never in training.
            output_hidden_states: whether to return what enters each layer, and the result.
            output_attentions: refused.
            return_dict: False returns a tuple.
            logits_to_keep: the last so many positions only, or a tensor of positions; 0 keeps all.
            cache: another name for ``past_key_values``.
            kwargs: ``num_items_in_batch`` for the loss; ``seq_idx``, ``cu_seq_lens_q`` and their kin of packed
                documents; what changes nothing.

        Returns:
            ``logits`` ``[B, T, V]``, with labels ``loss``, with ``use_cache`` the cache, as ``past_key_values`` or,
            from transformers 5.24 on, ``cache``.

        Raises:
            ManticoreError: neither or both of ids and embeddings, attentions, unknown arguments, documents in one row
                or padding behind cached tokens together with a cache.
        """
        self.check_adapters()
        for_loss = loss_arguments(type(self).forward, kwargs)
        if output_attentions:
            raise ManticoreError("twin: output_attentions, but its mixers have none. Fix: ask the parent")
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        if (input_ids is None) == (inputs_embeds is None):
            raise ManticoreError("twin: it takes either input_ids or inputs_embeds. Fix: give one of them")
        batch, tokens = given.shape[:2]
        brought = one_cache(past_key_values, cache)
        cache = self._cache(brought, use_cache)
        position_ids = positions_of_documents(kwargs, position_ids, given.shape, given.device)
        by_default = cache is not None and brought is None and use_cache is None
        if by_default and holds_documents(attention_mask, position_ids, batch, tokens):
            cache = None
        pieces = None
        # within a hybrid, which has arranged the tokens, the cache is the hybrid's
        if cache is None or isinstance(cache, TwinCache):
            attention_mask = continued_mask(attention_mask, cache, batch, tokens)
            position_ids = continued_positions(position_ids, attention_mask, cache, tokens)
            pieces = rearranged(
                *(attention_mask, position_ids, batch, tokens, cache),
                stateful=lambda: "this twin" if self._has_states else None,
            )
        name = "input_ids" if inputs_embeds is None else "inputs_embeds"
        asked: dict[str, Any] = {
            "use_cache": cache is not None,
            cache_argument(type(self.parent).forward): cache,
            "output_hidden_states": bool(output_hidden_states),
            "return_dict": True,
        }
        if pieces is None:
            only = {name: given, "attention_mask": attention_mask, "position_ids": position_ids}
            out = self.parent(**only, **asked, logits_to_keep=logits_to_keep)
            logits, states = out.logits, out.hidden_states
        else:
            outs = [
                self.parent(
                    **{name: piece.take(given)},
                    attention_mask=piece.mask,
                    position_ids=piece.positions(position_ids, batch),
                    **asked,
                )
                for piece in pieces
            ]
            logits = put_back(pieces, [out.logits for out in outs], batch, tokens)
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits, states = logits[:, kept], None
            if output_hidden_states:
                each = zip(*(out.hidden_states for out in outs))
                states = tuple(put_back(pieces, values, batch, tokens) for values in each)
        if isinstance(cache, TwinCache):
            cache.seen_tokens += tokens
        loss = None
        if labels is not None:
            vocab_size = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **for_loss)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=states, **named(cache))
        return output.to_tuple() if return_dict is False else output

    def _cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to read and extend, or None."""
        if given is not None:
            refuse_cache_in_checkpointing(self)
            return given
        follows = bool(getattr(self.config, "use_cache", True)) and not self.training
        return self.new_cache() if new_cache_wanted(self, follows if use_cache is None else use_cache) else None

    @cached_property
    def _has_states(self) -> bool:
        return has_states(TwinCache(self.config).layers)

    def new_cache(self) -> TwinCache:
        """An empty cache for this twin."""
        return TwinCache(self.config)

    def get_input_embeddings(self) -> nn.Module:
        """The parent's."""
        return self.parent.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Give the parent other embeddings."""
        self.parent.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The parent's head."""
        return self.parent.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Give the parent another head."""
        self.parent.set_output_embeddings(new_embeddings)

    def _init_weights(self, module: nn.Module) -> None:
        """As the parent's family does; of the twin itself there is nothing to initialise."""
        if module is not self:
            self.parent._init_weights(module)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: for custom code transformers skips initialisers of modules without weights of their own."""
        return False


class TwinCache(CountingCache):
    """The cache of a twin: keys and values of the layers that attend, states and short convolutions of the others."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(DynamicCache(config=config).layers)


class HandsOn:
    """Gives layers what mixers need beside the family's own arguments: the mask of padding, and that of windows."""

    def __init__(self, window: int | None) -> None:
        self.window = window

    def __call__(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        added: dict[str, Any] = {PADDING: mask}
        if self.window is not None:
            given = next(
                each for each in (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args) if each is not None
            )
            config = copy.copy(body.config)
            config.sliding_window = self.window
            # asked for its shape, precision and device alone
            like = torch.empty(*given.shape[:2], 0, dtype=body.dtype, device=given.device)
            cache = cache_in(kwargs) if kwargs.get("layer_past") is None else kwargs["layer_past"]
            positions = kwargs.get("position_ids")
            added[WINDOW_MASK] = create_sliding_window_causal_mask(
                config=config, inputs_embeds=like, attention_mask=mask, position_ids=positions, **named(cache)
            )
        return args, {**kwargs, **added}


def exchange(layer: nn.Module, index: int, config: TwinConfig) -> None:
    """Put the mixer that a twin's configuration names where a layer's attention is, in place.

    Raises:
        ManticoreError: there is no attention, one that is not understood, or one without what the mixer needs.
    """
    owner, name, maps = attention_of(layer, index, config.parent)
    if config.mixer == "sliding-attention" and maps.softcap:
        raise ManticoreError(
            f"twin: layer {index} of family {config.parent.model_type!r} bounds its attention's scores, which a window "
            "of it would not. Fix: another mixer"
        )
    mixer = MIXERS[config.mixer](maps, config.parent, rotary=config.rotary, window=config.window)
    mixer.train(getattr(owner, name).training)
    setattr(owner, name, mixer)
