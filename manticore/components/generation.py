"""Generation with a cache of the model's own making, as hybrids and stacks have: what ``generate`` may ask.

Greedy decoding, sampling and beams work as in every model of transformers. What would need another kind of cache, or
code that is not installed, is refused.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn

from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import GenerationMode

from manticore.components.state_cache import CountingCache
from manticore.errors import ManticoreError

_MODES = {
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
}


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
        kind, given = generation_config.cache_implementation, model_kwargs.get("past_key_values")
        if kind not in (None, "dynamic"):
            raise ManticoreError(
                f"generate: cache_implementation {kind!r} cannot hold the states of recurrent layers beside keys and "
                "values. Fix: leave it out"
            )
        if given is not None and not isinstance(given, CountingCache):
            raise ManticoreError(
                f"generate: past_key_values is a {type(given).__name__}, which this model cannot continue. "
                "Fix: leave it out, or give what new_cache() or an earlier generation returned"
            )
        if given is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()

    def _prepare_model_inputs(
        self, inputs: Tensor | None, bos_token_id: Any, model_kwargs: dict[str, Any]
    ) -> tuple[Tensor, str | None, dict[str, Any]]:
        found, name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)  # type: ignore[misc]
        if name == "input_ids" and (found.dim() != 2 or found.numel() == 0):
            raise ManticoreError(
                f"generate: input_ids has shape {list(found.shape)} (expected [batch, tokens], at least one token). "
                "Fix: one row of ids per sequence"
            )
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
