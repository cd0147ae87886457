"""The settings that a component's own ``generate`` goes by, as plain values that a hybrid can keep and save."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from manticore.components.token_matching import EXACT, ROLE, Matching

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]
"""Name in a ``GenerationConfig`` → value; what is not set is absent."""

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")

# what generate returns beside the tokens, and how it gets them faster: none of it decides which tokens come out
_NOT_ABOUT_TOKENS = {
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("continuous_batching_config", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
    *("assistant_ensemble_weight", "prompt_lookup_num_tokens", "max_matching_ngram_size", "use_mtp"),
    *("speculation_type", "transformers_version"),
}
# besides the special tokens; each holds ids of the component's own tokenizer
_HOLD_IDS = (
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "forced_bos_token_id"),
    *("forced_eos_token_id", "decoder_start_token_id"),
)


def generation_settings(model: PreTrainedModel) -> dict[str, Any]:
    """What is set of a model's generation configuration, and may decide which tokens it writes."""
    own: Any = model.generation_config
    if own is None:
        return {name: value for name in SPECIAL if (value := getattr(model.config, name, None)) is not None}
    bias = own.sequence_bias
    # a dictionary from tuples is no JSON; transformers takes pairs as well
    pairs = {"sequence_bias": [[list(ids), value] for ids, value in bias.items()]} if isinstance(bias, dict) else {}
    settings = {**json.loads(own.to_json_string(use_diff=True, ignore_metadata=True)), **pairs}
    known = GenerationConfig().to_dict().keys() - _NOT_ABOUT_TOKENS
    return {name: value for name, value in settings.items() if name in known and not name.startswith("_")}


def ends_of(eos_token_id: int | Iterable[int] | None) -> list[int]:
    """The ids that end a text, of whatever transformers allows for them."""
    if eos_token_id is None:
        return []
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)


def as_ends(ids: Iterable[int]) -> int | list[int] | None:
    """The other way round: a number where there is one, None where there is none."""
    found = list(dict.fromkeys(ids))
    if not found:
        return None
    return found if len(found) > 1 else found[0]


def translate_ids(model: PreTrainedModel, matching: Matching, fallback: int | None, name: str) -> None:
    """Put a model's ends, in place, into the ids of a tokenizer that its rows were rearranged for.

    Settings that hold other ids are let go, and a warning says so; it also names ends that nothing stands for.

    Args:
        model: already with the rows of the kept tokenizer.
        matching: from the kept tokenizer to the model's own.
        fallback: the end where none of the model's can be translated.
        name: what warnings call the model.
    """
    stands_for: dict[int, list[int]] = {}
    for index, (sources, kind) in enumerate(zip(matching.sources, matching.kinds)):
        if kind in (EXACT, ROLE):
            stands_for.setdefault(sources[0], []).append(index)
    lost: set[int] = set()
    holders: tuple[Any, ...] = (model.config, model.generation_config)
    for holder in holders:
        given = ends_of(getattr(holder, "eos_token_id", None))
        if given:
            lost.update(end for end in given if end not in stands_for)
            found = as_ends(ours for end in given for ours in stands_for.get(end, ()))
            holder.eos_token_id = fallback if found is None else found
    if lost:
        logger.warning(
            "%s: it also ends its texts with %s, for which the kept tokenizer has no token: dropped", name, sorted(lost)
        )
    dropped = [each for each in _HOLD_IDS if getattr(model.generation_config, each, None) is not None]
    for each in dropped:
        setattr(model.generation_config, each, None)
    if dropped:
        logger.warning("%s: %s of its generation settings name its old tokens: dropped", name, ", ".join(dropped))
