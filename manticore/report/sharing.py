"""Makes the folder of a saved model ready for others: a loader for tools that do not import manticore, a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manticore.components.loading import load_config
from manticore.errors import ManticoreError
from manticore.file_names import SCHEMA_VERSION
from manticore.hybrid.configuration import ManticoreConfig
from manticore.report.card import PICTURE, write_model_card
from manticore.stacks.configuration import StackConfig
from manticore.stages import STAGES
from manticore.writing import write_text

LOADER = "loading_manticore.py"
_LOADER_TEXT = '''"""Lets tools that do not import manticore load this model, where they are asked to trust its code."""

try:
    from manticore import ManticoreConfig, StackConfig
except ImportError as error:
    raise ImportError("this model is loaded by the package manticore-hybrids: install that first") from error
'''
_LOADS_WITH = ("CausalLM", "SequenceClassification", "TokenClassification")


def share(folder: str | Path) -> list[str]:
    """Add to the folder of a saved hybrid or stack what others need; done twice, it changes nothing more.

    A loader: a file of a few lines that imports this package, and ``auto_map`` in ``config.json`` that names it. With
    them tools which never heard of manticore load the model where it is installed, with *their*
    ``trust_remote_code=True`` (lm-eval: ``--model_args pretrained=FOLDER,trust_remote_code=True``). What imports
    manticore does not run it. A model card, where a hybrid's folder has none: parents with revisions, the licence that
    follows from theirs, blocks, and what the verb that wrote the folder has noted beside the model.

    Args:
        folder: where ``save_pretrained``, a verb or a run has written the model.

    Returns:
        Names of the files it wrote.

    Raises:
        ManticoreError: no model of this package there, or the folder cannot be written.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ManticoreError(f"share: {folder}: no such folder. Fix: save the model there first")
    config = load_config(str(path))
    if not isinstance(config, ManticoreConfig | StackConfig):
        raise ManticoreError(
            f"share: {folder} holds a {config.model_type} model, which every tool loads as it is "
            "(expected a hybrid or a stack). Fix: nothing to do"
        )
    written = [LOADER, "config.json"]
    try:
        write_text(path / LOADER, _LOADER_TEXT)
        raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
        raw["auto_map"] = {"AutoConfig": f"{LOADER.removesuffix('.py')}.{type(config).__name__}"}
        write_text(path / "config.json", json.dumps(raw, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise ManticoreError(
            f"share: {folder}: cannot be written ({error.strerror}). Fix: free space or change permissions"
        ) from error
    if isinstance(config, ManticoreConfig) and not (path / "README.md").exists():
        write_model_card(path, folder_record(path, config))
        written += ["README.md", PICTURE]
    return written


def folder_record(folder: Path, config: ManticoreConfig) -> dict[str, Any]:
    """What a hybrid's folder says of it, as a record for the report: its configuration, and the notes beside it."""
    parents = config.parents or [{}] * config.num_components
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": folder.resolve().name,
        "components": [
            {
                "name": Path(parent.get("source") or "").name,
                "source": parent.get("source") or "",
                "revision": parent.get("commit"),
                "family": component.model_type,
                "layers": component.num_hidden_layers,
                "width": component.hidden_size,
                "license": parent.get("license"),
                "dequantized_from": getattr(component, "dequantized_from", None),
            }
            for parent, component in zip(parents, config.components)
        ],
        "combine": {
            "num_blocks": config.num_blocks,
            "mixing": config.mixing,
            "output": config.output,
            "forgetting": config.forgetting,
            "projector": config.projector,
            "boundaries": config.boundaries,
        },
        "discretize": {"path": config.path},
        "model": {"loads_with": _loads_with(config)},
    }
    for stage in STAGES:
        note = {} if stage.note is None else _read_note(folder / stage.note)
        if note:
            record[stage.name] = note
            record["seed"] = note.get("seed")
            if "task" in note:
                record["task"] = note["task"]
    return record


def _read_note(file: Path) -> dict[str, Any]:
    """What a verb has noted beside the model that it wrote; nothing where it has not."""
    if not file.is_file():
        return {}
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManticoreError(f"{file}: cannot be read as JSON. Fix: remove it, the card will do without") from error
    return note if isinstance(note, dict) else {}


def _loads_with(config: ManticoreConfig) -> str:
    for task in _LOADS_WITH:
        if any(name.endswith(task) for name in config.architectures or []):
            return f"AutoModelFor{task}"
    return ""
