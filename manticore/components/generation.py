"""Generation with a cache of the model's own making, as hybrids and stacks have: what ``generate`` may ask.

Greedy decoding, sampling and beams work as in every model of transformers. What would need another kind of cache, or
code that is not installed, is refused.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.generation import GenerationMode

from manticore.components.cache_argument import CACHE_ARGUMENT, CACHE_NAMES, cache_in
from manticore.components.shapes import expect_shape
from manticore.components.state_cache import CountingCache
from manticore.errors import ManticoreError

_MODES = {
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
}

_FOR_STOPPING = {"tokenizer", "assistant_tokenizer"}


def new_cache_wanted(model: nn.Module, use_cache: bool) -> bool:
    """``use_cache``, but never where gradient checkpointing runs layers again: that would extend a cache twice."""
    if use_cache and _runs_layers_twice(model):
        warnings.warn("use_cache is off: gradient checkpointing would extend the cache twice", stacklevel=4)
        return False
    return use_cache


def refuse_cache_in_checkpointing(model: nn.Module) -> None:
    """Refuse a given cache where gradient checkpointing runs layers again.

    Raises:
        ManticoreError: it does.
    """
    if _runs_layers_twice(model):
        raise ManticoreError(
            f"forward: {CACHE_ARGUMENT} in training with gradient checkpointing, which would extend the cache twice. "
            "Fix: gradient_checkpointing_disable()"
        )


def _runs_layers_twice(model: nn.Module) -> bool:
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


class OwnCacheGenerationMixin(GenerationMixin):
    """``generate`` over a :class:`~manticore.components.state_cache.CountingCache`.

    The name ends as transformers expects of whatever lends a model ``generate``.
    """

    @abstractmethod
    def new_cache(self) -> CountingCache:
        """An empty cache."""

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Every generation gets a cache of its own, unless it asked for none or brought one."""
        kind = generation_config.cache_implementation
        given = cache_in({name: model_kwargs.pop(name, None) for name in CACHE_NAMES})
        if kind not in (None, "dynamic"):
            raise ManticoreError(
                f"generate: cache_implementation {kind!r} cannot hold the states of recurrent layers beside keys and "
                "values. Fix: leave it out"
            )
        if given is not None and not isinstance(given, CountingCache):
            raise ManticoreError(
                f"generate: {CACHE_ARGUMENT} is a {type(given).__name__}, which this model cannot continue. "
                "Fix: leave it out, or give what new_cache() or an earlier generation returned"
            )
        mask = model_kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 2 and bool((mask[:, -1] == 0).any()):
            raise ManticoreError(
                "generate: attention_mask has padding behind the last token of a prompt, so that a text would begin "
                "behind padding. Fix: pad on the left (tokenizer.padding_side = 'left')"
            )
        if given is None and generation_config.use_cache is not False:
            given = self.new_cache()
        if given is not None:
            model_kwargs[CACHE_ARGUMENT] = given

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As transformers does, without the tokenizers that it hands on to every forward pass for stop strings."""
        # transformers looks for inputs_embeds in the signature; forward says why it is refused
        kwargs["inputs_embeds"] = inputs_embeds
        given: Any = input_ids
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(given, *args, **kwargs)  # type: ignore[misc]
        return {name: value for name, value in inputs.items() if name not in _FOR_STOPPING}

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The column that is added to the mask is all ones: the next forward pass need not look."""
        model_kwargs: dict[str, Any] = super()._update_model_kwargs_for_generation(*args, **kwargs)  # type: ignore[misc]
        cache, mask = model_kwargs.get(CACHE_ARGUMENT), model_kwargs.get("attention_mask")
        if isinstance(cache, CountingCache) and mask is not None:
            cache.real_columns = mask.shape[-1]
        return model_kwargs

    def _prepare_model_inputs(
        self, inputs: Tensor | None, bos_token_id: Any, model_kwargs: dict[str, Any]
    ) -> tuple[Tensor, str | None, dict[str, Any]]:
        found, name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)  # type: ignore[misc]
        if name == "input_ids":
            fix = "one row of ids per sequence, at least one id"
            expect_shape("input_ids", found, ["batch", "tokens"], fix, where="generate")
        return found, name, model_kwargs

    def _validate_generation_mode(self, generation_mode: Any, *args: Any, **kwargs: Any) -> None:
        if generation_mode == GenerationMode.ASSISTED_GENERATION and self._is_stateful:  # type: ignore[attr-defined]
            raise ManticoreError(
                "generate: assisted decoding and prompt lookup take wrong guesses back, which the state of a recurrent "
                "layer does not allow. Fix: leave assistant_model and prompt_lookup_num_tokens out"
            )
        super()._validate_generation_mode(generation_mode, *args, **kwargs)  # type: ignore[misc]

    def _get_deprecated_gen_repo(
        self, generation_mode: Any, trust_remote_code: bool, custom_generate: Any = None
    ) -> str | None:
        """Modes that transformers has moved out are code from the hub."""
        if custom_generate is None and generation_mode not in _MODES:
            name = str(generation_mode.value).replace("_", " ")
            raise ManticoreError(
                f"generate: {name} is no longer part of transformers but code on the hub, which is not run. "
                "Fix: greedy decoding, sampling or beams"
            )
        return super()._get_deprecated_gen_repo(generation_mode, trust_remote_code, custom_generate)  # type: ignore[misc]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: its pages hold keys and values only."""
        raise ManticoreError(
            "generate: continuous batching keeps keys and values in pages, which cannot hold the states of recurrent "
            "layers. Fix: generate a left-padded batch"
        )
