"""Configurations of small models: depth and width are chosen, the family's other sizes follow in proportion."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from manticore.components.loading import check_family
from manticore.errors import ManticoreError, in_brief
from manticore.paths import expanded
from manticore.registry import did_you_mean
from manticore.settings import Pretrain
from manticore.stacks.saved import saved_stack

_HEAD_WIDTH = 32

LEAST_POSITIONS = 1024
"""Positions that families with learned positions get at least: tasks may be longer than the text's packs."""


def small_config(
    family: str, *, layers: int, width: int, positions: int = 0, options: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """A configuration of ``family`` with this depth and width; heads are 32 wide, hidden layers four times the width.

    Args:
        family: a ``model_type`` of transformers, with ``-`` or ``_``.
        layers: depth.
        width: of the hidden states.
        positions: the longest sequence, for families that need to know.
        options: fields of the configuration that win over what is derived; JSON values.

    Raises:
        ManticoreError: no such causal LM, an unknown field, or a shape that the family cannot have.
    """
    family = _known(family)
    kind = CONFIG_MAPPING[family]
    # The size of the vocabulary is the tokenizer's.
    fields = {field.name for field in dataclasses.fields(kind)} - {"vocab_size"}
    given = {kind.attribute_map.get(name, name): value for name, value in (options or {}).items()}
    for name, value in given.items():
        if name not in fields:
            hint = _near(name, sorted(fields)) or ". Fix: see the family's configuration in transformers"
            raise ManticoreError(f"pretrain: {family} has no option {name!r}{hint}")
        _check_json(family, name, value)
    sizes = {kind.attribute_map.get(name, name): value for name, value in _sizes(family, layers, width).items()}
    sizes["max_position_embeddings"] = max(positions, LEAST_POSITIONS)
    derived = {name: value for name, value in sizes.items() if name in fields}
    try:
        shape = kind(**{**derived, **given})
        check_family(shape, f"pretrain: {family}")
        # Only the model knows all that cannot be, such as widths that heads do not divide.
        with torch.device("meta"):
            build(shape)
    except (StrictDataclassError, ValueError, RuntimeError, TypeError, AssertionError, ArithmeticError) as error:
        reason = in_brief(error)
        rest = f" and {dict(options)}" if options else ""
        raise ManticoreError(
            f"pretrain: {family} cannot have {layers} layers of width {width}{rest} ({reason}). Fix: other sizes"
        ) from error
    return shape


def shape_of(family: str | Path, settings: Pretrain) -> PreTrainedConfig:
    """The configuration that settings make of a family, or that of a stack in a folder.

    Raises:
        ManticoreError: as :func:`small_config`; sizes that are missing for a family, or beside a stack, which has its
            own.
    """
    family, given = str(family), {"layers": settings.layers, "width": settings.width}
    is_family = any(spelling in CONFIG_MAPPING for spelling in _spellings(family))
    if not is_family and expanded(family).is_dir():
        stack = saved_stack(family, "pretrain: ")
        sizes = [name for name, value in {**given, "config": settings.config or None}.items() if value is not None]
        if sizes:
            raise ManticoreError(
                f"pretrain: {sizes[0]} beside {family}, whose configuration has it. Fix: leave it out, or change "
                "that configuration"
            )
        stack.max_position_embeddings = max(stack.max_position_embeddings, settings.length)
        return stack
    family = _known(family)
    if settings.layers is None or settings.width is None:
        lacks = " and ".join(name for name, value in given.items() if value is None)
        raise ManticoreError(f"pretrain: {family} needs {lacks}. Fix: give both, such as 4 and 64")
    return small_config(
        family, layers=settings.layers, width=settings.width, positions=settings.length, options=settings.config
    )


def build(shape: PreTrainedConfig) -> PreTrainedModel:
    """A model of this configuration with fresh weights in float32."""
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def _known(family: str) -> str:
    for spelling in _spellings(family):
        if spelling in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and spelling in CONFIG_MAPPING:
            return spelling
    hint = _near(family, list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    hint = hint or ". Fix: a model_type of transformers, such as gpt_neo or mamba, or the folder of a stack"
    raise ManticoreError(f"pretrain: family {family!r} is not a causal language model of transformers{hint}")


def _spellings(family: str) -> tuple[str, str]:
    return family, family.replace("-", "_")


def _near(word: str, choices: list[str]) -> str:
    """A suggestion, or nothing: these lists are too long to print."""
    hint = did_you_mean(word, choices)
    return hint if hint.startswith(". Did") else ""


def _check_json(family: str, name: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ManticoreError(
            f"pretrain: option {name!r} of {family} is a {type(value).__name__}. "
            "Fix: give a number, text, list or mapping"
        ) from error


def _sizes(family: str, layers: int, width: int) -> dict[str, Any]:
    """What follows from depth and width; a family takes the fields that it has."""
    heads = max(1, width // _HEAD_WIDTH)
    sizes: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 4 * width,
    }
    if family == "gpt_neo":
        # Global and local layers in turn, as in the family's own checkpoints.
        sizes["attention_types"] = [[["global", "local"], layers // 2], [["global"], layers % 2]]
    if family == "mamba2":
        # Its inner width is twice the width.
        sizes |= {"num_heads": 2 * heads, "head_dim": width // heads, "n_groups": 1}
    return sizes
