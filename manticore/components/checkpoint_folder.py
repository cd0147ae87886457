"""What the folder of a checkpoint says without torch or transformers: its family, its tokenizer, that it has weights.

For checks that must answer at once. What loads a checkpoint asks the same questions here.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable, Mapping, Set
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

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "seq_length")
"""Names that families have for the same thing; the first is transformers' own, to which most map theirs."""


@cache
def causal_families() -> dict[str, tuple[str, ...]]:
    """``model_type`` → classes of causal language models, of the installed transformers; read, not imported."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
            assert isinstance(node.value, ast.Call)
            pairs = ast.literal_eval(node.value.args[0])
            return {family: (names,) if isinstance(names, str) else tuple(names) for family, names in pairs}
    raise ManticoreError(f"transformers: no causal language models in {spec.origin}. Fix: install a supported version")


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
