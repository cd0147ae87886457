"""The hybrid: components cut into blocks that run side by side, joined by projectors and mixture weights.

Letters: B batch, T tokens, D width, V vocabulary, K components, N blocks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.adapters import AdapterGuard
from manticore.components.loading import align_memory, load_tokenizer
from manticore.components.pruning import prune_component
from manticore.components.resizing import resize_vocabulary
from manticore.components.runner import Recording, Runner
from manticore.components.vocabulary import with_vocabulary
from manticore.errors import ManticoreError
from manticore.hybrid.cache import HybridCache
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.mixing import Features, Mixing, check_weights
from manticore.hybrid.path import PathMixing
from manticore.projectors.projector import Projector
from manticore.registry import resolve

logger = logging.getLogger(__name__)


class ManticorePreTrainedModel(AdapterGuard):
    """What all hybrids are: components, mixing, and the way through the blocks; what reads the last features differs.

    Components are whole models of transformers and direct attributes (``component_0`` …), so that names, ties and
    sharding rules of their families hold.

    Args:
        config: the hybrid's configuration.
        components: K loaded models to use as they are; None builds them from their configurations.
    """

    config_class = ManticoreConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = True
    _skip_keys_device_placement = ["past_key_values", "cache_params", "layer_past"]  # noqa: RUF012
    # probabilities in half precision would no longer sum to 1
    _keep_in_fp32_modules_strict = {"mixing.weights", "mixing.routing"}  # noqa: RUF012

    keeps_lm_heads = True
    """Whether the components' own heads are read; where they are not, they are left out."""

    def __init__(self, config: ManticoreConfig, components: Sequence[PreTrainedModel] | None = None) -> None:
        super().__init__(config)
        kept = set(range(config.num_components)) if config.path is None else set(config.path)
        self.runners: list[Runner | None] = []
        for k, component_config in enumerate(config.components):
            if k not in kept:
                setattr(self, f"component_{k}", None)
                self.runners.append(None)
                continue
            component = AutoModelForCausalLM.from_config(component_config) if components is None else components[k]
            setattr(self, f"component_{k}", component)
            runner = Runner(component, config.layer_outputs[k] if config.layer_outputs else None)
            self.runners.append(runner)
            if config.path is not None or not self.keeps_lm_heads:
                prune_component(
                    component,
                    runner.layers,
                    keep=self._kept_layers(k),
                    embeddings=config.path is None or config.path[0] == k,
                    head=self.keeps_lm_heads and (config.path is None or config.path[-1] == k),
                )
        self.mixing: Mixing = resolve("mixing", config.mixing)(config) if config.path is None else PathMixing(config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._add_heads()
        self.post_init()

    def _add_heads(self) -> None:
        """What a kind of hybrid adds to components and mixing, before weights are initialised."""

    def _kept_layers(self, k: int) -> list[int]:
        """Layers of component k that the hybrid's path goes through."""
        edges = self.config.boundaries[k]
        path = self.config.path if self.config.path is not None else [k] * self.config.num_blocks
        return [i for n, m in enumerate(path) if m == k for i in range(edges[n], edges[n + 1])]

    def _run_blocks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: HybridCache | None = None,
    ) -> tuple[Features, dict[int, Recording]]:
        """What leaves the last block, and per component that runs what its norm and head need."""
        self.check_adapters()
        recordings = {
            k: self._runner(k).record(**self._inputs(k, input_ids, attention_mask, position_ids, cache))
            for k in self._used()
        }
        features = self._mix(recordings)
        if cache is not None:
            cache.seen_tokens += input_ids.shape[1]
        return features, recordings

    def _used(self) -> list[int]:
        """Components whose embeddings or layers are read."""
        return sorted(self.mixing.embedded().union(*self.mixing.active()))

    def _inputs(
        self,
        k: int,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: HybridCache | None,
    ) -> dict[str, Any]:
        """What component k's forward takes."""
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": cache.views[k] if cache is not None else None,
            "use_cache": cache is not None,
        }

    def _mix(self, recordings: Mapping[int, Recording]) -> Features:
        """From the embeddings through all blocks."""
        active = self.mixing.active()
        features: Features = {k: recordings[k].hidden for k in sorted(self.mixing.embedded())}
        for n in range(self.config.num_blocks):
            inputs = self.mixing.enter(n, features, sorted(active[n]))
            features = {k: self._run_segment(n, k, recordings[k], hidden) for k, hidden in inputs.items()}
        return features

    def _check_positions(self, tokens: int, cached: int, position_ids: Tensor | None) -> None:
        """Refuse more tokens than one of the components in use has positions for.

        After a cached prompt given positions count instead of the length: padding takes none. They are read only where
        the length alone does not settle it, since reading waits for the device.
        """
        for k in self._used():
            limit = self._runner(k).positions
            if limit is None or cached + tokens <= limit:
                continue
            if tokens > limit or position_ids is None or int(position_ids.max()) >= limit:
                part = f" ({cached} of them cached)" if cached else ""
                raise ManticoreError(
                    f"forward: {cached + tokens} tokens{part}, but {self._named(k)} has positions for {limit}. "
                    "Fix: shorter sequences, or a component without a table of positions"
                )

    def _named(self, k: int) -> str:
        return f"component {k} ({self.config.components[k].model_type})"

    def _run_segment(self, n: int, k: int, recording: Recording, hidden: Tensor) -> Tensor:
        edges = self.config.boundaries[k]
        return self._runner(k).run(recording, hidden, edges[n], edges[n + 1])

    def _runner(self, k: int) -> Runner:
        runner = self.runners[k]
        if runner is None:
            raise ManticoreError(
                f"component {k} was dropped when this hybrid was discretized to {self.config.path}. "
                "Fix: use the supernet it was made from"
            )
        return runner

    def component(self, k: int) -> PreTrainedModel:
        """Component k, the whole model.

        Raises:
            ManticoreError: it was dropped.
        """
        return self._runner(k).model

    @property
    def mixture_weights(self) -> Tensor:
        """``[N, K]``: the share of each component in each block; rows on the simplex, no gradient."""
        return self.mixing.mixture_weights()

    def set_mixture_weights(self, weights: Tensor | Sequence[Sequence[float]] | Sequence[int]) -> None:
        """Set ``[N, K]`` weights, or a vertex given as N component indices.

        Raises:
            ManticoreError: wrong shape, rows that do not sum to 1, or weights that a discretized hybrid cannot take.
        """
        checked = check_weights(weights, self.config.num_blocks, self.config.num_components)
        self.mixing.set_mixture_weights(checked)

    @property
    def is_discretized(self) -> bool:
        """Whether each block holds one component only."""
        return self.config.path is not None

    def with_vocabulary(self, vocab_size: int, *, seed: int = 0) -> ManticorePreTrainedModel:
        """Fresh embeddings and heads, in place, for a task with its own vocabulary.

        Projectors between embeddings are reset, since what they translated is gone. The tokenizer and its special
        tokens are let go.

        Args:
            vocab_size: V of the task.
            seed: of the fresh embeddings and heads.
        """
        for runner in self.runners:
            if runner is not None:
                with_vocabulary(runner.model, vocab_size, seed=seed)
        for translation in self.mixing.translations():
            if 0 in (translation.source[1], translation.target[1]):
                translation.projector.reset_identity()
        self.config.vocab_size = vocab_size
        self.config.tokenizer_component = self.config.reembedded = None
        self.tokenizer = None
        self.set_special_tokens(None)
        return self

    def set_special_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Take over the ids that begin, end and pad a text; None unsets them."""
        # only what can generate has the second
        for holder in (self.config, getattr(self, "generation_config", None)):
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if holder is not None:
                    setattr(holder, name, getattr(tokenizer, name, None))

    def get_input_embeddings(self) -> nn.Module:
        """The first kept component's embeddings; the other components have their own."""
        return next(runner for runner in self.runners if runner is not None).model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refused: K components have K embeddings."""
        raise ManticoreError("set_input_embeddings: a hybrid has one per component. Fix: use with_vocabulary")

    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Give every component's embeddings and head more rows (for tokens that were added), or fewer, in place.

        Projectors stay. A tokenizer with more tokens than rows are left is let go.

        Args:
            new_num_tokens: rows afterwards; None keeps them.
            pad_to_multiple_of: round that up to a multiple.
            mean_resizing: draw new rows around the mean of the old ones; else as each family draws its first weights.

        Returns:
            The first kept component's embeddings.

        Raises:
            ManticoreError: a number below 1.
        """
        rows = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        for name, number in {"new_num_tokens": rows, "pad_to_multiple_of": multiple}.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ManticoreError(
                    f"resize_token_embeddings: {name} is {number!r} (expected a whole number). Fix: give 1 or more"
                )
        rows = -(-rows // multiple) * multiple
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            for runner in self.runners:
                if runner is not None:
                    resize_vocabulary(runner.model, self.config.vocab_size, rows, mean_resizing=mean_resizing)
            self.config.vocab_size = rows
            if self.tokenizer is not None and len(self.tokenizer) > rows:
                logger.warning("the tokenizer has %d tokens, the hybrid now %d: let go", len(self.tokenizer), rows)
                self.tokenizer = None
        return self.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Only what the hybrid adds; components initialise themselves."""
        if isinstance(module, Projector):
            module.reset_parameters()
        elif isinstance(module, Mixing) and not all(
            # what transformers puts on a tensor that it has loaded
            getattr(parameter, "_is_hf_initialized", False)
            for parameter in module.mixture_parameters()
        ):
            module.reset_mixture()

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: for custom code transformers skips initialisers of modules without weights of their own.

        Some families fill their derived tables there, which would then hold whatever was in memory.
        """
        return False

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """Save weights, configuration and, where there is one, the tokenizer."""
        super().save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a hybrid and the tokenizer beside it; see transformers for the arguments."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        hybrid = loaded[0] if isinstance(loaded, tuple) else loaded
        align_memory(hybrid)
        tokenizer = load_tokenizer(pretrained_model_name_or_path, revision=kwargs.get("revision"))
        rows = hybrid.config.vocab_size
        if tokenizer is not None and len(tokenizer) > rows:
            # left there by a hybrid that was saved to the same folder before
            logger.warning(
                "the tokenizer beside the hybrid has %d tokens, the hybrid %d: left out", len(tokenizer), rows
            )
            tokenizer = None
        hybrid.tokenizer = tokenizer
        return loaded


class ManticoreForCausalLM(ManticorePreTrainedModel, GenerationMixin):
    """A supernet of K causal LMs, or, once discretized, one path through their blocks.

    :func:`manticore.combine` builds a hybrid, ``from_pretrained`` loads one; arguments as in the base class.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        use_cache: bool | None = None,
        past_key_values: HybridCache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of every next token.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, cached + T]``, 0 on padding.
            position_ids: ``[B, T]``; None leaves each component to its own rule.
            labels: ``[B, T]``, shifted here as everywhere in transformers; -100 is ignored.
            logits_to_keep: the last so many positions only; 0 keeps all.
            use_cache: whether to return a cache; only if asked for, since plain evaluation has no use for one.
            past_key_values: the cache of the tokens before these.
            inputs_embeds: refused.
            kwargs: handed to the loss (``num_items_in_batch``).

        Returns:
            ``logits`` ``[B, T, V]``, with labels ``loss``, with ``use_cache`` ``past_key_values``.

        Raises:
            ManticoreError: ``inputs_embeds`` (K components have K embeddings of different widths), another
                cache than a hybrid's, more tokens than a component has positions for, or adapters on maps that
                cannot carry them.
        """
        self.check_adapters()
        input_ids = require_ids(input_ids, inputs_embeds)
        cache = self._cache(past_key_values, use_cache)
        self._check_positions(input_ids.shape[1], cache.seen_tokens if cache is not None else 0, position_ids)
        if cache is not None and cache.seen_tokens and input_ids.shape[1] > 1 and self._one_token_at_a_time():
            return self._step_by_step(input_ids, attention_mask, position_ids, logits_to_keep, cache)

        heads = sorted(self.mixing.active()[-1])
        inputs = {k: self._inputs(k, input_ids, attention_mask, position_ids, cache) for k in self._used()}
        recordings = {k: self._runner(k).record(**given) for k, given in inputs.items() if k not in heads}
        outputs: Features = {}
        self._descend(heads, inputs, recordings, {}, outputs, logits_to_keep)
        logits = self.mixing.mixed({k: outputs[k][..., : self.config.vocab_size] for k in heads})
        if cache is not None:
            cache.seen_tokens += input_ids.shape[1]

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _descend(
        self,
        heads: Sequence[int],
        inputs: Mapping[int, dict[str, Any]],
        recordings: dict[int, Recording],
        final: Features,
        outputs: Features,
        logits_to_keep: int | Tensor,
    ) -> None:
        """Fill ``outputs`` with the logits of each component in ``heads``.

        Each one's own forward runs up to its last layer and waits there, one inside the other; in the innermost all
        blocks run, and on the way out each gets its features for norm and head.
        """
        if not heads:
            final.update(self.mixing.head_inputs(self._mix(recordings)))
            return
        k, *others = heads

        def middle(recording: Recording) -> Tensor:
            recordings[k] = recording
            self._descend(others, inputs, recordings, final, outputs, logits_to_keep)
            return final[k]

        outputs[k] = self._runner(k).logits(middle, **inputs[k], logits_to_keep=logits_to_keep)

    def new_cache(self) -> HybridCache:
        """An empty cache for this hybrid; dropped layers take no room."""
        return HybridCache(self.config.components, [self._kept_layers(k) for k in range(self.config.num_components)])

    def _cache(self, given: HybridCache | None, use_cache: bool | None) -> HybridCache | None:
        if given is not None and not isinstance(given, HybridCache):
            raise ManticoreError(
                f"forward: past_key_values is a {type(given).__name__} (expected a HybridCache). "
                "Fix: leave it out, or use hybrid.new_cache()"
            )
        if not use_cache:
            return None
        return given if given is not None else self.new_cache()

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
        logits_to_keep: int,
        cache: HybridCache,
    ) -> CausalLMOutputWithPast:
        logits = []
        tokens, seen = input_ids.shape[1], cache.seen_tokens
        for t in range(tokens):
            output = self(
                input_ids=input_ids[:, t : t + 1],
                attention_mask=None if attention_mask is None else attention_mask[:, : seen + t + 1],
                position_ids=None if position_ids is None else position_ids[:, t : t + 1],
                past_key_values=cache,
                use_cache=True,
            )
            logits.append(output.logits)
        return CausalLMOutputWithPast(logits=torch.cat(logits, 1)[:, -logits_to_keep:], past_key_values=cache)

    def get_output_embeddings(self) -> None:
        """None: every component has its own head."""

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Every generation gets a :class:`HybridCache` of its own, unless it asked for none or brought one."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ManticoreError(
                f"generate: cache_implementation {generation_config.cache_implementation!r} cannot hold the states of "
                "recurrent layers. Fix: leave it out"
            )
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.new_cache()

    def _validate_generated_length(  # type: ignore[override]
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """Refuses, before the first token, to go beyond a component's positions; the default length ends there."""
        limits = {k: runner.positions for k, runner in enumerate(self.runners) if runner is not None}
        k, limit = min(((k, n) for k, n in limits.items() if n is not None), key=lambda e: e[1], default=(0, None))
        # the last token is not read again
        if limit is not None and generation_config.max_length - 1 > limit:
            by_default = has_default_max_length and generation_config.max_new_tokens is None
            if not by_default or input_ids_length > limit:
                raise ManticoreError(
                    f"generate: prompt and new tokens make {generation_config.max_length}, but {self._named(k)} has "
                    f"positions for {limit}. Fix: a shorter prompt, or a smaller max_new_tokens"
                )
            generation_config.max_length = limit + 1
        super()._validate_generated_length(  # type: ignore[misc]
            generation_config, input_ids_length, has_default_max_length
        )


def require_ids(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The ids ``[B, T]``.

    Raises:
        ManticoreError: there are none, or embeddings beside them.
    """
    if input_ids is None or inputs_embeds is not None:
        raise ManticoreError("forward: inputs_embeds has no meaning with several embeddings. Fix: give input_ids")
    return input_ids
