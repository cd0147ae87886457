"""The lines of Python that load a finished hybrid, for the report and the model card."""

from __future__ import annotations

import json
import os
from pathlib import Path

from manticore.file_names import MODEL
from manticore.report.results import Results

_DEFAULT_CLASS = "AutoModelForCausalLM"


def loading_code(results: Results, folder: Path) -> str:
    """Code that loads the run's model, to be run inside ``folder``."""
    path = (results.model.path if results.model else "") or MODEL
    return code_for(results, path, with_tokenizer=has_tokenizer(folder / path))


def code_for(results: Results, path: str, *, with_tokenizer: bool) -> str:
    """The same for a model that readers find at ``path`` (a folder or a hub id)."""
    loads_with = results.model.loads_with if results.model else ""
    # The record is data: only a name may go into code.
    loader = loads_with if loads_with.isidentifier() else _DEFAULT_CLASS
    # classes of the package are imported from it
    own = not loader.startswith("Auto")
    names = [name for name in (None if own else loader, "AutoTokenizer" if with_tokenizer else None) if name]
    # A string of JSON is also one of Python, quoted the way the rest of the project is.
    quoted = json.dumps(path, ensure_ascii=False)
    lines = [
        f"from manticore import {loader}" if own else "import manticore  # registers the classes with transformers",
        *([f"from transformers import {', '.join(names)}"] if names else []),
        "",
        f"model = {loader}.from_pretrained({quoted})",
    ]
    if with_tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({quoted})")
    return "\n".join(lines)


def has_tokenizer(model_dir: Path) -> bool:
    """False for hybrids of a task with its own vocabulary."""
    # os.path answers False, not an error, where the record holds what can be no path.
    return os.path.isfile(model_dir / "tokenizer_config.json")
