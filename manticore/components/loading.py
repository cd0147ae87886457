"""Loads pretrained components without ever executing code or unpickling data from a checkpoint."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.checkpoint_folder import TOKENIZER_FILES, architecture_problem, family_problem, unknown_family
from manticore.components.extra_outputs import ask_for_no_more, configurations
from manticore.components.gguf_files import checkpoint_folder
from manticore.components.loaded_weights import (
    in_precision,
    keeping_loaded_weights,
    note_separate_head,
    refuse_not_finite,
)
from manticore.components.positions import token_embeddings
from manticore.components.quiet import quiet_loading
from manticore.components.rebuilding import copied
from manticore.components.sources import file_of, nearest_folder, refuse_missing_folder, refuse_unreadable, unreachable
from manticore.components.weight_files import check_files, refuse_absurd_depth
from manticore.errors import ManticoreError, about, in_brief, told

logger = logging.getLogger(__name__)

_CACHE_LINE_BYTES = 64


def load_component(
    source: str | Path | PreTrainedModel,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
) -> PreTrainedModel:
    """A causal LM from a folder, a hub id or a model in memory.

    Args:
        source: folder or hub id with safetensors weights; a model is copied, so that the caller's stays as it is.
        revision: branch, tag or commit on the hub.
        dtype: precision of the weights; None keeps the checkpoint's.

    Returns:
        The model in evaluation mode.

    Raises:
        ManticoreError: no causal LM, weights only as pickle, remote code needed, weights missing or of wrong shape.
    """
    wanted = None if dtype is None else _as_dtype(dtype)
    if isinstance(source, PreTrainedModel):
        _check_object(source)
        # a model may have been cast by hand, so even its own precision is taken anew where it is asked for
        model = copied(source) if wanted is None else in_precision(source, wanted)
        for config in configurations(model):
            ask_for_no_more(config)
        note_separate_head(model)
        return model.eval()
    if not isinstance(source, str | Path):
        raise ManticoreError(
            f"a {type(source).__name__} is not a component (expected a folder, a hub id or a PreTrainedModel). "
            "Fix: merge adapters into their model first"
        )
    name = checkpoint_folder(str(source), revision=revision)
    config = load_config(name, revision=revision)
    # families of this package have no name among transformers' own; a classifier of theirs may lie there
    problem = architecture_problem(config.architectures, {kind.__name__ for kind in _causal_classes(config)})
    if problem is not None:
        raise ManticoreError(f"{name}: {problem}")
    ask_for_no_more(config)
    return load_weights(AutoModelForCausalLM, name, config, revision=revision, dtype=wanted)


def load_weights(
    kind: Any,
    name: str,
    config: PreTrainedConfig,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A whole, finite model from safetensors files.

    Args:
        kind: a class of models, or one of transformers' ``Auto`` classes.
        name: folder or hub id.
        config: its checked configuration.
        revision: branch, tag or commit on the hub.
        dtype: precision of the weights; None keeps the checkpoint's.

    Returns:
        The model in evaluation mode.

    Raises:
        ManticoreError: unsafe, damaged or incomplete files, weights of wrong shape, NaN or infinity.
    """
    build = kind.from_config if hasattr(kind, "from_config") else kind
    check_files(name, lambda: build(copy.deepcopy(config)), revision=revision)
    # families and file formats raise many classes; each means that these files make no model
    no_model = told(name, "its weights cannot be loaded", "give a complete safetensors checkpoint")
    with no_model, quiet_loading(), keeping_loaded_weights():
        loaded: Any = kind.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=dtype if dtype is not None else "auto",
            use_safetensors=True,
            # reported below, with the name of the weight
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, info = loaded
    mismatched = sorted(info.get("mismatched_keys", []), key=str)
    if mismatched:
        key, got, expected = mismatched[0]
        raise ManticoreError(
            f"{name}: {key} does not fit config.json (got shape {list(got)}, expected {list(expected)}). "
            "Fix: give weights and config.json of one checkpoint"
        )
    missing = sorted(info.get("missing_keys", []))
    if missing:
        raise ManticoreError(
            f"{name}: {len(missing)} weights are not in the checkpoint (first: {missing[0]}). "
            "Fix: give a complete checkpoint"
        )
    refuse_not_finite(model, name)
    note_separate_head(model)
    align_memory(model)
    return model.eval()


def load_config(name: str, *, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a checkpoint, checked to be a causal LM that this package can take apart.

    Raises:
        ManticoreError: no such checkpoint, remote code, no causal LM, a refused family.
    """
    name = checkpoint_folder(name, revision=revision)
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        fix = (
            f"did you mean {path / 'model'}?"
            if (path / "model" / "config.json").is_file()
            else "give the folder of a checkpoint"
        )
        raise ManticoreError(f"{name}: no config.json there. Fix: {fix}")
    refuse_missing_folder(name)
    refuse_unreadable(name)
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        if not isinstance(raw, dict) or not raw:
            raise ValueError("it holds no settings")
        refuse_absurd_depth(name, raw)
    except ManticoreError:
        raise
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        if path.exists():
            raise ManticoreError(
                f"{name}: config.json cannot be read ({in_brief(error)}). Fix: give the folder of a checkpoint"
            ) from error
        fix = nearest_folder(name) or "Fix: check the id, or go online"
        why = "the hub cannot be reached" if unreachable(error) else f"the hub has no such model ({in_brief(error)})"
        raise ManticoreError(f"{name}: no such folder here, and {why}. {fix}") from error
    family = raw.get("model_type")
    known = isinstance(family, str) and family in CONFIG_MAPPING
    if not known:
        raise ManticoreError(f"{name}: {unknown_family(raw)}")
    # strict configurations raise many classes; each means that config.json is wrong
    with about(name), told("", "config.json is not valid", "give the one that belongs to the checkpoint"):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    check_family(config, name)
    return config


def check_family(config: PreTrainedConfig, name: str) -> None:
    """Refuse what is not a decoder-only causal LM, by configuration alone."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    causal = None if known is None and type(config) not in AutoModelForCausalLM._model_mapping else _names(known)
    problem = family_problem(lambda field: getattr(config, field, None), causal)
    if problem is not None:
        raise ManticoreError(f"{name}: {problem}")


def _names(known: str | Sequence[str] | None) -> set[str]:
    return {known} if isinstance(known, str) else set(known or ())


def _causal_classes(config: PreTrainedConfig) -> tuple[type, ...]:
    try:
        mapped: Any = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise ManticoreError(
            f"a {type(config).__name__} belongs to no causal language model that transformers knows. "
            "Fix: give a model with the configuration of its family, or register both with AutoModelForCausalLM"
        ) from None
    return mapped if isinstance(mapped, tuple) else (mapped,)


def load_tokenizer(
    source: str | Path | PreTrainedModel, *, revision: str | None = None, **where: Any
) -> PreTrainedTokenizerBase | None:
    """The tokenizer stored with a checkpoint, or None where there is none (models in memory carry none).

    Args:
        source: folder, hub id or model.
        revision: branch, tag or commit on the hub.
        where: what else says where files are (``subfolder``, ``cache_dir``, ``token``, ``local_files_only``).

    Raises:
        ManticoreError: its files cannot be read, or a path leads nowhere.
    """
    if isinstance(source, PreTrainedModel):
        return None
    name = checkpoint_folder(str(source), revision=revision, local_files_only=bool(where.get("local_files_only")))
    refuse_missing_folder(name)
    refuse_unreadable(name)
    if not any(file_of(name, file, revision=revision, **where) for file in TOKENIZER_FILES):
        return None
    # the tokenizers library raises plain exceptions for files it cannot read
    with told(name, "its tokenizer cannot be loaded", "save the tokenizer there again"):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **where)


def own_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a hybrid carries, or that lies in the folder which a model was loaded from."""
    carried = getattr(model, "tokenizer", None)
    folder = model.config.name_or_path or ""
    if carried is not None or not Path(folder, "config.json").is_file():
        return carried
    return load_tokenizer(folder)


def align_memory(model: PreTrainedModel) -> None:
    """Copy weights that lie at odd addresses in memory, as those read from a file do.

    For them some kernels add in another order, so that a model would lose its last bits by being saved and loaded.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _CACHE_LINE_BYTES:
            tensor.data = tensor.data.clone()


def _check_object(model: PreTrainedModel) -> None:
    """Refuse a model in memory that is not a causal LM, such as a family's bare body or its classifier."""
    name = str(model.config.name_or_path or type(model).__name__)
    check_family(model.config, name)
    expected = _causal_classes(model.config)
    if not isinstance(model, expected):
        raise ManticoreError(
            f"{name}: the model is a {type(model).__name__} (expected {' or '.join(c.__name__ for c in expected)}). "
            "Fix: give a causal language model"
        )
    with about(name):
        token_embeddings(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ManticoreError(
            f"{name}: its weights are on the meta device, so there are none. "
            "Fix: load it with from_pretrained, without init on meta or a device_map that leaves weights on disk"
        )
    refuse_not_finite(model, name)


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ManticoreError(f"dtype is {dtype!r} (expected float32, bfloat16, float16 or float64). Fix: choose one")
    return found
