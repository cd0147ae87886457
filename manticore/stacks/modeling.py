"""Stacks: causal language models made of a flat list of primitives, each with its norm and its residual.

    x <- x + layer(norm(x)) for every layer (or with the norm elsewhere, ``StackConfig.residual``), then norm and a
    linear head. No tied weights and no table of positions: order comes from rotations, convolutions and states.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from manticore.components.adapters import AdapterGuard
from manticore.components.cache_argument import CACHE_NAMES, cache_in, named, one_cache
from manticore.components.extra_arguments import loss_arguments, positions_of_documents
from manticore.components.generation import (
    OwnCacheGenerationMixin,
    new_cache_wanted,
    refuse_cache_in_checkpointing,
)
from manticore.components.state_cache import CountingCache, has_states
from manticore.components.token_layout import continued_mask, continued_positions, holds_documents, put_back, rearranged
from manticore.errors import ManticoreError
from manticore.stacks.catalogue import build_mixer
from manticore.stacks.configuration import StackConfig
from manticore.stacks.layer_entry import LayerEntry
from manticore.stacks.long_convolution import ImplicitFilter
from manticore.stacks.mixer import Memory, Mixer, Step

_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
_RECURRENT = ("linear_attention", "conv", "hybrid", "hybrid_sliding")


def make_norm(config: StackConfig) -> nn.Module:
    """The norm before every layer and the head."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class StackLayer(GradientCheckpointingLayer):
    """Norm, primitive, residual.

    Args:
        config: of the stack.
        entries: its layers.
        layer_idx: the layer's position.
        mixer: the primitive of the lower layer whose weights this one has; None makes one.
    """

    def __init__(
        self, config: StackConfig, entries: Sequence[LayerEntry], layer_idx: int, mixer: Mixer | None = None
    ) -> None:
        super().__init__()
        entry = entries[layer_idx]
        self.layer_idx, self.residual = layer_idx, config.residual
        self.source = entry.features_of
        self.hands_on = any(each.features_of == layer_idx for each in entries)
        self.norm = make_norm(config)
        sizes = (config.hidden_size, config.max_position_embeddings)
        self.mixer = mixer or build_mixer(entry.name, *sizes, entry.options, entry.features)
        features = {name for group in self.mixer.feature_groups for name in group} - {*entry.features}
        # what a feature needs of the past comes with it
        self.declined = [name for name in self.mixer.hands_on if name.rpartition(".")[2] in features]

    def forward(
        self,
        hidden_states: Tensor,
        *taken: Tensor | None,
        attention_mask: Tensor | None = None,
        padding: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention: str = "eager",
        cache: Cache | None = None,
    ) -> Tensor | tuple[Tensor | None, ...]:
        """``[B, T, D]`` → ``[B, T, D]``, and the features that upper layers take, where they do.

        Args:
            hidden_states: ``[B, T, D]``.
            taken: features of a lower layer, in the order of :attr:`Mixer.hands_on`.
            attention_mask: of the layer's kind of attention, in the form that the implementation takes.
            padding: ``[B, T, 1]``, 0 on padding.
            position_ids: ``[B or 1, T]``.
            attention: attention implementation of transformers.
            cache: the cache of all layers.
        """
        memory = None if cache is None else Memory(cache, self.layer_idx)
        found: dict[str, Tensor | None] | None = {} if self.hands_on else None
        step = Step(padding, attention_mask, position_ids, attention, memory, self._features(taken), found)
        hidden = self._mixed(hidden_states, step)
        return hidden if found is None else (hidden, *(found[name] for name in self.mixer.hands_on))

    def _mixed(self, hidden: Tensor, step: Step) -> Tensor:
        """Primitive, norm and residual in their order."""
        if self.residual == "pre":
            return hidden + self.mixer(self.norm(hidden), step)
        mixed = self.mixer(hidden, step)
        return self.norm(hidden + mixed) if self.residual == "post" else hidden + self.norm(mixed)

    def _features(self, taken: tuple[Tensor | None, ...]) -> dict[str, Tensor | None]:
        """Those that are taken, by their names."""
        if self.source is None:
            return {}
        if not any(torch.is_tensor(each) for each in taken):
            raise ManticoreError(
                f"stack: layers[{self.layer_idx}] takes features of layers[{self.source}], which did not run with it, "
                "as where layers are cut into blocks. Fix: a stack without features_of"
            )
        found = {}
        for name, each in zip(self.mixer.hands_on, taken):
            if name not in self.declined:
                found[name] = each
        return found


class StackPreTrainedModel(AdapterGuard):
    """What all models made of stacks share: initialisation and what transformers asks of a class."""

    config_class = StackConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["StackLayer"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @property
    def _is_stateful(self) -> bool:  # type: ignore[override]
        """Whether there is a state that cannot be taken back by some tokens, as assisted decoding would ask."""
        return any(kind in _RECURRENT for kind in self.config.layer_types)

    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings N(0, initializer_range); linear maps as ``linear_init`` says, biases 0; the rest by itself."""
        if isinstance(module, nn.Linear):
            if self.config.linear_init == "normal":
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            bound = (module.in_channels // module.groups * module.kernel_size[0]) ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                init.zeros_(bias)
        elif isinstance(module, Mixer | ImplicitFilter):
            module.reset_extra_parameters()
            if self.config.linear_init == "normal":
                # also the maps to which the layer has just given a start of its own, such as Mamba's time steps
                for layer in module.modules():
                    if isinstance(layer, nn.Linear):
                        self._init_weights(layer)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: for custom code transformers skips initialisers of modules without weights of their own."""
        return False


class StackModel(StackPreTrainedModel):
    """Embeddings, layers and the last norm.

    Args:
        config: the stack's configuration.
        last_norm: whether there is a norm after the last layer; without it the raw stream is returned.
    """

    def __init__(self, config: StackConfig, *, last_norm: bool = True) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList()
        origins: list[int] = []
        tied: dict[str, str] = {}
        entries = config.entries
        # read once: every step of decoding asks
        self._sources = [entry.features_of for entry in entries]
        for index, entry in enumerate(entries):
            origin = index if entry.weights_of is None else origins[entry.weights_of]
            lower = None if origin == index else cast(StackLayer, self.layers[origin]).mixer
            origins.append(origin)
            self.layers.append(StackLayer(config, entries, index, lower))
            if lower is not None:
                names = [name for name, _ in lower.named_parameters()]
                tied.update({f"layers.{index}.mixer.{name}": f"layers.{origin}.mixer.{name}" for name in names})
        self._tied_weights_keys = tied
        mixers = config.mixers()
        # not what their caches hold: attention to a lower layer's keys caches nothing and needs its mask
        self._mask_types = [mixer.mask_type for mixer in mixers]
        self._skips_padding = any(mixer.cache_type in _RECURRENT for mixer in mixers)
        self.norm = make_norm(config) if last_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states after the last norm, where there is one.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, cached + T]``, 0 on padding.
            position_ids: ``[B, T]``; None counts from the cached tokens on. Only differences matter; where they start
                anew, another document begins.
            past_key_values: the cache of the tokens before these; transformers calls it ``cache`` from 5.24 on.
            inputs_embeds: ``[B, T, D]`` in place of ids.
            use_cache: whether to return a cache; None follows the configuration, but never in training and never of
                packed documents.
            output_hidden_states: whether to return what enters each layer, and the result.
            return_dict: False returns a tuple.
            cache: another name for ``past_key_values``.
            kwargs: ``seq_idx``, ``cu_seq_lens_q`` and their kin of packed documents; what changes nothing.

        Raises:
            ManticoreError: neither or both of ids and embeddings; a mask that is not ``[B, cached + T]``; a cache in
                training with gradient checkpointing; unknown arguments; documents in one row or padding behind cached
                tokens together with a cache.
        """
        loss_arguments(type(self).forward, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ManticoreError("stack: it takes either input_ids or inputs_embeds. Fix: give one of them")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        given = one_cache(past_key_values, cache)
        cache = self._cache(given, use_cache)
        batch, tokens = hidden.shape[:2]
        position_ids = positions_of_documents(kwargs, position_ids, hidden.shape, hidden.device)
        by_default = cache is not None and given is None and use_cache is None
        if by_default and holds_documents(attention_mask, position_ids, batch, tokens):
            cache = None
        pieces = None
        # within a hybrid, which has arranged the tokens, the cache is the hybrid's
        if cache is None or isinstance(cache, StackCache):
            attention_mask = continued_mask(attention_mask, cache, batch, tokens)
            position_ids = continued_positions(position_ids, attention_mask, cache, tokens)
            pieces = rearranged(
                *(attention_mask, position_ids, batch, tokens, cache),
                stateful=lambda: "this stack" if self._has_states else None,
            )
        every = bool(output_hidden_states)
        if pieces is None:
            states = self._run(hidden, attention_mask, position_ids, cache, every)
        else:
            of_pieces = [
                self._run(piece.take(hidden), piece.mask, piece.positions(position_ids, batch), cache, every)
                for piece in pieces
            ]
            states = [put_back(pieces, values, batch, tokens) for values in zip(*of_pieces)]
        hidden = states[-1]
        if isinstance(cache, StackCache):
            cache.seen_tokens += hidden.shape[1]
        output = BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden),
            hidden_states=tuple(states) if output_hidden_states else None,  # type: ignore[arg-type]
            **named(cache),
        )
        return output.to_tuple() if return_dict is False else output

    @cached_property
    def _has_states(self) -> bool:
        return has_states(StackCache(self.config).layers)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Target → source of the weights that layers share.

        transformers would leave them out where embeddings and head are not tied, which has nothing to do with them.
        """
        if all_submodels:
            found: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels=True)
            return found
        return dict(self._tied_weights_keys or {})

    def _run(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        every: bool,
    ) -> list[Tensor]:
        """All layers: what enters each and what leaves the last, or the latter alone."""
        attends = [kind for kind in _MASKS if kind in self._mask_types]
        if attends and position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(seen, seen + hidden.shape[1], device=hidden.device)[None]
        masks = {
            kind: _MASKS[kind](
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=attention_mask,
                **named(cache),
            )
            for kind in attends
        }
        padding = _padding(attention_mask, hidden) if self._skips_padding else None
        states = []
        handed: list[tuple[Tensor | None, ...]] = []
        for layer, kind, source in zip(self.layers, self._mask_types, self._sources):
            if every:
                states.append(hidden)
            output = layer(
                hidden,
                *(() if source is None else handed[source]),
                attention_mask=None if kind is None else masks[kind],
                padding=padding,
                position_ids=position_ids,
                attention=self.config._attn_implementation,
                cache=cache,
            )
            hidden, *features = output if isinstance(output, tuple) else (output,)
            handed.append(tuple(features))
        return [*states, hidden]

    def _cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to read and extend, or None."""
        if given is not None:
            refuse_cache_in_checkpointing(self)
            return given
        wanted = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        return StackCache(self.config) if new_cache_wanted(self, wanted) else None


class StackForCausalLM(StackPreTrainedModel, OwnCacheGenerationMixin):
    """A stack with a head: an ordinary causal language model of transformers."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.model = StackModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

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
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of every next token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, cached + T]``, 0 on padding.
            position_ids: ``[B, T]``; see :meth:`StackModel.forward`.
            past_key_values: the cache of the tokens before these; transformers calls it ``cache`` from 5.24 on.
            inputs_embeds: ``[B, T, D]`` in place of ids.
            labels: ``[B, T]``, shifted here as everywhere in transformers; -100 is ignored.
            use_cache: whether to return a cache.
            output_hidden_states: whether to return what enters each layer, and the result.
            return_dict: False returns a tuple.
            logits_to_keep: the last so many positions only, or a tensor of positions; 0 keeps all.
            cache: another name for ``past_key_values``.
            kwargs: ``num_items_in_batch`` for the loss; the rest as in :meth:`StackModel.forward`.

        Returns:
            ``logits`` ``[B, T, V]``, with labels ``loss``, with ``use_cache`` the cache, as ``past_key_values`` or,
            from transformers 5.24 on, ``cache``.
        """
        self.check_adapters()
        for_loss = loss_arguments(type(self).forward, kwargs)
        body = cast(
            BaseModelOutputWithPast,
            self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cache=one_cache(past_key_values, cache),
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                output_hidden_states=output_hidden_states,
                **kwargs,
            ),
        )
        hidden = body.last_hidden_state
        assert hidden is not None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **for_loss)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=body.hidden_states, **named(cache_in(body))
        )
        return output.to_tuple() if return_dict is False else output

    def new_cache(self) -> StackCache:
        """An empty cache for this stack."""
        return StackCache(self.config)


class StackCache(CountingCache):
    """The cache of a stack: keys and values, states, the inputs of short convolutions, and how many tokens it saw."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(DynamicCache(config=config).layers)


def _padding(attention_mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """``[B, T, 1]``, 0 on padding, or None without a mask."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[1] < hidden.shape[1]:
        raise ManticoreError(
            f"stack: attention_mask has shape {list(attention_mask.shape)}, which recurrent layers cannot follow "
            "(expected [batch, cached + new tokens]). Fix: give a mask of padding"
        )
    return attention_mask[:, -hidden.shape[1] :, None].to(hidden.dtype)
