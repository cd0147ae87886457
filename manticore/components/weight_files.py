"""What the files of a checkpoint hold, looked at before anything is built from them.

A checkpoint is untrusted: its files may be pickles, lie outside its folder, or belong to a configuration of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.initialization import no_init_weights
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from manticore.components.checkpoint_folder import refuse_no_weights
from manticore.components.generation_limits import check_generation_limits
from manticore.components.sources import file_of
from manticore.errors import ManticoreError, about, told

MOST_LAYERS = 10_000
"""More layers than any model has; to build so many would take minutes before a file is read."""

_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_blocks", "num_components")

_BELONGS = "give the one that belongs to the checkpoint"
# ties and buffers may make a model larger than its files, absurd configurations are larger by orders of magnitude
_TIMES_STORED, _BESIDE_STORED = 4, 10**7


def check_files(name: str, build: Callable[[], nn.Module], *, revision: str | None) -> None:
    """Refuse a checkpoint whose weights are unsafe to read or far too few for its configuration.

    Args:
        name: folder or hub id.
        build: builds the model by its configuration, which happens without memory.
        revision: branch, tag or commit on the hub.

    Raises:
        ManticoreError: only pickles, an adapter instead of a model, an index that leads out of the folder, damaged
            files, or sizes that they cannot hold.
    """
    refuse_no_weights(name)
    check_generation_limits(name, revision)
    if file_of(name, "adapter_config.json", revision=revision) is not None:
        raise ManticoreError(
            f"{name}: it holds an adapter (adapter_config.json), which names another model. "
            "Fix: merge the adapter into its model and save that"
        )
    files = _weight_files(name, revision)
    if not files:
        # transformers says what is missing
        return
    kinds = [_tensors(name, file) for file in files]
    stored = sum(count for tensors in kinds for count, _ in tensors.values())
    # families check their sizes each in its own way
    with about(name), told("", "config.json describes no model", _BELONGS), torch.device("meta"), no_init_weights():
        model = build()
    _refuse_no_weights(name, model, {key: kind for tensors in kinds for key, (_, kind) in tensors.items()})
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > _TIMES_STORED * stored + _BESIDE_STORED:
        raise ManticoreError(
            f"{name}: config.json describes {needed:,} weights, the files hold {stored:,}. "
            "Fix: give weights and config.json of one checkpoint"
        )


class _Index(BaseModel):
    """Which file holds a weight; all lie beside the index."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[^/\\]+\.safetensors$")]]


def refuse_absurd_depth(name: str, raw: Mapping[str, Any]) -> None:
    """Refuse more layers than any model has, in config.json or in a configuration inside it.

    Raises:
        ManticoreError: there are.
    """
    for key, value in raw.items():
        if isinstance(value, Mapping):
            refuse_absurd_depth(name, value)
        elif key in _DEPTHS and isinstance(value, int) and value > MOST_LAYERS:
            raise ManticoreError(
                f"{name}: config.json asks for {key} {value} (expected at most {MOST_LAYERS}). Fix: {_BELONGS}"
            )


def _weight_files(name: str, revision: str | None) -> list[Path]:
    """The files that transformers would read, in the order in which it looks for them."""
    whole = file_of(name, SAFE_WEIGHTS_NAME, revision=revision)
    if whole is not None:
        return [whole]
    index = file_of(name, SAFE_WEIGHTS_INDEX_NAME, revision=revision)
    if index is None:
        return []
    no_files = f"{index.name} does not lead to safetensors files beside it"
    with told(name, no_files, "download the checkpoint again", OSError, ValueError):
        shards = _Index.model_validate_json(index.read_bytes()).weight_map.values()
    found = [file_of(name, shard, revision=revision) for shard in sorted(set(shards))]
    return [file for file in found if file is not None]


def _tensors(name: str, file: Path) -> dict[str, tuple[int, str]]:
    """Of each tensor in a safetensors file, by its header: how many numbers, and of which kind (``F32``, ``I64``)."""
    damaged = told(name, "a weights file is damaged", "download it again", SafetensorError, OSError)
    with damaged, safe_open(file, framework="pt") as tensors:
        parts = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
        return {key: (math.prod(part.get_shape()), part.get_dtype()) for key, part in parts.items()}


def _refuse_no_weights(name: str, model: nn.Module, kinds: Mapping[str, str]) -> None:
    """Refuse weights that are not real numbers; tables of whole numbers, such as masks, may lie beside them."""
    weights = {key.rpartition(f"{model.base_model_prefix}.")[2] for key, _ in model.named_parameters()}
    for key, kind in kinds.items():
        whole = not kind.startswith(("F", "BF", "C"))
        is_weight = key.rpartition(f"{model.base_model_prefix}.")[2] in weights or key.endswith(".weight")
        if kind.startswith("C") or (whole and is_weight):
            raise ManticoreError(
                f"{name}: {key} holds {'whole' if whole else 'complex'} numbers ({kind}; expected floating point). "
                "Fix: give the checkpoint in its full precision"
            )
