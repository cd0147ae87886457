"""How a checkpoint says that text should be generated, looked at before it is loaded.

transformers takes these settings as they are; a wrong one shows only in the middle of a generation, as an exception of
any class or as memory that runs out.
"""

from __future__ import annotations

import math
from typing import Any

from manticore.components.sources import file_of
from manticore.errors import ManticoreError, about
from manticore.reading import read_object

MOST_BEAMS = 1_000
"""More beams than any decoding gains from; each holds a cache of its own."""

_LARGEST = 2**31 - 1
_COUNTS = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups"), MOST_BEAMS),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens", "top_k"), _LARGEST),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "prefill_chunk_size"), _LARGEST),
}
_NUMBERS = (
    *("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty"),
    *("encoder_repetition_penalty", "length_penalty", "diversity_penalty", "guidance_scale", "penalty_alpha"),
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_FLAGS = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "output_scores", "output_logits")


def check_generation_limits(name: str, revision: str | None) -> None:
    """Refuse settings that no generation can follow, and more beams than memory should hold.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        ManticoreError: there are some, or a file of settings cannot be read.
    """
    for file in ("generation_config.json", "config.json"):
        path = file_of(name, file, revision=revision)
        with about(name):
            values = None if path is None else read_object(path, "download the checkpoint again")
        for key, value in (values or {}).items():
            expected = None if value is None else _expected(key, value)
            if expected is not None:
                raise ManticoreError(f"{name}: {file}: {key} is {value!r:.60} (expected {expected}). Fix: correct it")


def _expected(key: str, value: Any) -> str | None:
    """What a setting should be; None where it is."""
    if key in _COUNTS and not _whole(value, 0, _COUNTS[key]):
        return f"a whole number up to {_COUNTS[key]}"
    if key in _NUMBERS and not (isinstance(value, int | float) and _finite(value)):
        return "a number"
    # some families mark a token that they lack with -1
    if key in _TOKENS and not all(
        _whole(each, -1, _LARGEST) for each in (value if isinstance(value, list) else [value])
    ):
        return "the id of a token, or a list of them"
    return "true or false" if key in _FLAGS and not isinstance(value, bool) else None


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
