"""Loads pretrained components without ever executing code or unpickling data from a checkpoint."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.errors import ManticoreError

logger = logging.getLogger(__name__)

# each of these computes something that no cut into blocks can keep
REFUSED_FAMILIES = {
    "rwkv": "it rescales its weights in place while it runs",
    "recurrent_gemma": "its recurrent state lives in the modules, not in a cache",
}


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
    if isinstance(source, PreTrainedModel):
        check_family(source.config, str(source.config.name_or_path or type(source).__name__))
        model = copy.deepcopy(source)
        return (model if dtype is None else nn.Module.to(model, dtype=_as_dtype(dtype))).eval()
    name = str(source)
    config = load_config(name, revision=revision)
    _refuse_pickle(name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=dtype if dtype is not None else "auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ManticoreError(f"{name}: its weights cannot be loaded: {one_line(error)}") from error
    except Exception as error:
        # safetensors raises its own class for damaged files
        if type(error).__module__.partition(".")[0] != "safetensors_rust" and "Safetensor" not in type(error).__name__:
            raise
        raise ManticoreError(f"{name}: a weights file is damaged: {one_line(error)}. Fix: download it again") from error
    model, info = loaded
    missing = sorted(info.get("missing_keys", []))
    if missing:
        raise ManticoreError(
            f"{name}: {len(missing)} weights are not in the checkpoint (first: {missing[0]}). "
            "Fix: give a complete checkpoint"
        )
    mismatched = sorted(str(entry[0]) for entry in info.get("mismatched_keys", []))
    if mismatched:
        raise ManticoreError(f"{name}: {mismatched[0]} has another shape than its config.json says")
    for parameter_name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ManticoreError(f"{name}: {parameter_name} holds NaN or infinity. Fix: give an intact checkpoint")
    return model.eval()


def load_config(name: str, *, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a checkpoint, checked to be a causal LM that this package can take apart.

    Raises:
        ManticoreError: no such checkpoint, remote code, no causal LM, a refused family.
    """
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise ManticoreError(f"{name}: no config.json there. Fix: give the folder of a checkpoint")
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ManticoreError(
            f"{name}: no such checkpoint: neither a folder nor a model that the hub returned ({one_line(error)}). "
            "Fix: check the path or id, or go online"
        ) from error
    family = raw.get("model_type")
    if "auto_map" in raw and family not in CONFIG_MAPPING:
        raise ManticoreError(
            f"{name}: it asks to run its own Python code (auto_map), which is never done. "
            "Fix: use a checkpoint of a family that transformers ships"
        )
    if not raw:
        raise ManticoreError(f"{name}: config.json is empty or unreadable. Fix: give the folder of a checkpoint")
    if family not in CONFIG_MAPPING:
        raise ManticoreError(f"{name}: model_type {family!r} is unknown to this version of transformers")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:
        # strict configurations raise many classes; each means that config.json is wrong
        raise ManticoreError(f"{name}: config.json is not valid: {one_line(error)}") from error
    check_family(config, name)
    return config


def check_family(config: PreTrainedConfig, name: str) -> None:
    """Refuse what is no decoder-only causal LM, by configuration alone."""
    family = config.model_type
    if family in REFUSED_FAMILIES:
        raise ManticoreError(
            f"{name}: family {family!r} is refused: {REFUSED_FAMILIES[family]}. Fix: use another family"
        )
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family)
    if known is None and type(config) not in AutoModelForCausalLM._model_mapping:
        raise ManticoreError(f"{name}: family {family!r} is no causal language model. Fix: give one (…ForCausalLM)")
    if getattr(config, "is_encoder_decoder", False):
        raise ManticoreError(f"{name}: family {family!r} is an encoder-decoder. Fix: give a decoder-only causal LM")
    causal = {known} if isinstance(known, str) else set(known or ())
    architectures = config.architectures or []
    if architectures and causal and not causal & set(architectures):
        raise ManticoreError(
            f"{name}: the checkpoint is a {architectures[0]} (expected {' or '.join(sorted(causal))}). "
            "Fix: give a causal language model"
        )
    if getattr(config, "vision_config", None) is not None or getattr(config, "audio_config", None) is not None:
        raise ManticoreError(f"{name}: family {family!r} takes more than text. Fix: give its text-only checkpoint")


def load_tokenizer(
    source: str | Path | PreTrainedModel, *, revision: str | None = None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer stored with a checkpoint, or None where there is none (models in memory carry none)."""
    if isinstance(source, PreTrainedModel):
        return None
    name = str(source)
    path = Path(name)
    if path.is_dir() and not any(
        (path / file).exists() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ManticoreError(f"{name}: its tokenizer cannot be loaded: {one_line(error)}") from error


def one_line(error: Any) -> str:
    """The first sentence of an exception, on one line, at most 200 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:199] + "…"


def _refuse_pickle(name: str) -> None:
    folder = Path(name)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise ManticoreError(
            f"{name}: weights only as pickle ({pickles[0]}), which can run code when it is read. "
            "Fix: convert them to safetensors where you trust them"
        )
    raise ManticoreError(f"{name}: no weights there (expected *.safetensors). Fix: give the folder of a checkpoint")


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
