"""What the folder of a checkpoint says without torch or transformers: its family, its tokenizer, that it has weights.

For checks that must answer at once. What loads a checkpoint asks the same questions here.

A checkpoint may also be one GGUF file: named by its path, as ``folder:file.gguf``, or by a folder that holds no other
weights.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from manticore._auto import CONFIGURATIONS
from manticore.errors import ManticoreError, told

REFUSED_FAMILIES = {
    "rwkv": "it rescales its weights in place while it runs",
    "recurrent_gemma": "its recurrent state lives in the modules, not in a cache",
}
"""Each of these computes something that no cut into blocks can keep."""

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""One of these lies beside the weights where a checkpoint brings its tokenizer."""

GGUF = ".gguf"
_GGUF_SPELLINGS = {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
}
"""Families that llama.cpp calls otherwise than transformers."""

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "seq_length")
"""Names that families have for the same thing; the first is transformers' own, to which most map theirs."""


@cache
def causal_families() -> dict[str, tuple[str, ...]]:
    """``model_type`` → classes of causal language models, of the installed transformers; read, not imported."""
    node = _assigned("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    assert isinstance(node, ast.Call)
    pairs = ast.literal_eval(node.args[0])
    return {family: (names,) if isinstance(names, str) else tuple(names) for family, names in pairs}


@cache
def gguf_families() -> frozenset[str]:
    """What llama.cpp calls the families that the installed transformers reads from GGUF; read, not imported."""
    tables = [_assigned("integrations/ggml.py", "GGUF_CONFIG_MAPPING")]
    with suppress(FileNotFoundError):
        tables.append(_assigned("integrations/gguf/gguf_config_mapping.py", "GGUF_CONFIG_ARCHS"))
    keys = {ast.literal_eval(key) for table in tables if isinstance(table, ast.Dict) for key in table.keys if key}
    names = keys - {"general", "tokenizer"}
    return frozenset(names | {name for name, family in _GGUF_SPELLINGS.items() if family in names})


def refuse_gguf_family(architecture: str, name: str) -> None:
    """Refuse a GGUF of a family that transformers cannot read.

    Args:
        architecture: what llama.cpp calls the family.
        name: what the file is called in messages.

    Raises:
        ManticoreError: it is of one.
    """
    if architecture not in gguf_families():
        raise ManticoreError(
            f"{name}: a GGUF of family {architecture[:40]!r}, which transformers does not read "
            f"(expected one of {', '.join(sorted(gguf_families()))}). Fix: give the checkpoint as safetensors"
        )


def _assigned(file: str, name: str) -> ast.expr:
    """What a module of the installed transformers assigns to a name at its top."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise ManticoreError(f"transformers: no {name} in {spec.origin}. Fix: install a supported version")


def family_problem(told: Callable[[str], Any], causal: Set[str] | None) -> str | None:
    """Why a configuration is none of a decoder-only causal LM of text, in full precision; None where it is one.

    Args:
        told: gives a field of the configuration, None where it has none.
        causal: classes of causal LMs that its family has; None where the family has none.
    """
    family = told("model_type")
    if family in REFUSED_FAMILIES:
        return f"family {family!r} is refused: {REFUSED_FAMILIES[family]}. Fix: use another family"
    if causal is None:
        return f"family {family!r} is not a causal language model. Fix: give one (…ForCausalLM)"
    if told("is_encoder_decoder"):
        return f"family {family!r} is an encoder-decoder. Fix: give a decoder-only causal LM"
    if (problem := architecture_problem(told("architectures"), causal)) is not None:
        return problem
    if told("vision_config") is not None or told("audio_config") is not None:
        return f"family {family!r} takes more than text. Fix: give its text-only checkpoint"
    if told("quantization_config") is not None:
        return "its weights are quantised. Fix: give the checkpoint in its full precision"
    return None


def architecture_problem(named: Any, causal: Set[str]) -> str | None:
    """Why a checkpoint was saved by none of the classes `causal`; none known is no reason."""
    found = [named] if isinstance(named, str) else named or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        fix = json.dumps(sorted(causal)[:1])
        return f"config.json names no classes in architectures (got {named!r:.60}). Fix: {fix}"
    if not found or not causal or causal & set(found):
        return None
    return f"the checkpoint is a {found[0]} (expected {' or '.join(sorted(causal))}). Fix: give a causal language model"


def unknown_family(raw: Mapping[str, Any]) -> str:
    """Why a checkpoint of a family that transformers does not know cannot be taken."""
    fix = "Fix: use a checkpoint of a family that transformers ships"
    if "auto_map" in raw:
        return f"it asks to run its own Python code (auto_map), which is never done. {fix}"
    return f"model_type {raw.get('model_type')!r} is unknown to this version of transformers. {fix}"


def raw_configuration(folder: Path) -> Mapping[str, Any]:
    """The content of config.json.

    Raises:
        ManticoreError: it cannot be read, or is not a configuration of a component.
    """
    with told("", "config.json cannot be read", "give the folder of a checkpoint", OSError, ValueError, RecursionError):
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(family, str):
        raise ManticoreError("config.json names no model_type. Fix: give the folder of a checkpoint")
    if family in CONFIGURATIONS:
        if CONFIGURATIONS[family] == "ManticoreConfig":
            raise ManticoreError("it is a hybrid itself. Fix: combine all its components at once")
        return raw
    known = causal_families().get(family)
    if known is None and "auto_map" in raw:
        raise ManticoreError(unknown_family(raw))
    problem = family_problem(raw.get, None if known is None else set(known))
    if problem is not None:
        raise ManticoreError(problem)
    return raw


def gguf_file(name: str) -> Path | None:
    """The GGUF file on this machine that a checkpoint's name means; None where it means something else.

    Raises:
        ManticoreError: it is not there, or a folder holds several and none is named.
    """
    path = Path(name)
    if path.is_dir():
        found = [] if any(path.glob("*.safetensors")) else _gguf_files(path)
        if len(found) > 1:
            raise ManticoreError(
                f"{name}: {len(found)} GGUF files ({_some(found)}). Fix: name one, {name.rstrip('/')}:{found[0].name}"
            )
        return found[0] if found else None
    if not name.lower().endswith(GGUF) or path.is_file():
        return path if path.is_file() and path.suffix.lower() == GGUF else None
    head, colon, file = name.rpartition(":")
    folder = Path(head) if colon else path.parent
    if not folder.is_dir():
        # the file of a hub id, or a folder that is not there
        return None
    inside = folder / (file if colon else path.name)
    if not inside.is_file():
        there = _gguf_files(folder)
        raise ManticoreError(f"{name}: no such file. Fix: {f'there: {_some(there)}' if there else 'check the path'}")
    return inside


def _gguf_files(folder: Path) -> list[Path]:
    # a folder that may not be read has none: glob passes it over
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == GGUF and path.is_file())


def _some(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def quantization_of(model: Any) -> str | None:
    """What quantisation a model's weights came out of (``Q4_1, Q8_0``), of a hybrid those of its components.

    Args:
        model: a model or a configuration.
    """
    config = getattr(model, "config", model)
    parts = [config, *(getattr(config, f"component_{k}", None) for k in range(getattr(config, "num_components", 0)))]
    return (
        "; ".join(dict.fromkeys(found for part in parts if (found := getattr(part, "dequantized_from", None)))) or None
    )


def dequantized(name: str, kind: str) -> str:
    """A sentence on a model whose weights came quantised."""
    return f"{name} was dequantised from {kind}: its scores are those of the quantised model."


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies there."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def refuse_no_weights(name: str) -> None:
    """Refuse a folder whose weights are pickles, or that has none.

    Raises:
        ManticoreError: it is one.
    """
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


def first_number(raw: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The value of the first of these fields that holds a whole number."""
    return next((raw[name] for name in names if type(raw.get(name)) is int), None)
