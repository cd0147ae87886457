"""Tells a local folder, also a mistyped one, from the id of a model on the hub, and says where a checkpoint is from."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file

from manticore.errors import ManticoreError, closed
from manticore.paths import expanded


def refuse_missing_folder(name: str) -> None:
    """Refuse what can only be a local folder and is not there.

    Raises:
        ManticoreError: `name` is written like a path, lies in a folder that exists, or is not a legal id.
    """
    if not Path(name).exists() and _is_path(name):
        raise ManticoreError(f"{name}: no such folder. {nearest_folder(name) or 'Fix: check the path'}")


def refuse_unreadable(name: str) -> None:
    """Refuse a local folder with files that this user may not read: libraries take them for damaged or missing.

    Raises:
        ManticoreError: there is one.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    effective = os.access in os.supports_effective_ids
    try:
        files = sorted(folder.iterdir())
        shut = next((path for path in files if not os.access(path, os.R_OK, effective_ids=effective)), None)
    except PermissionError:
        shut = folder
    if shut is not None and not (shut.is_symlink() and not shut.exists()):
        raise closed(shut)


def nearest_folder(name: str) -> str:
    """``"Did you mean …?"`` with the folder beside `name` whose name is most like it; empty where none is."""
    path = expanded(name)
    if path.is_dir():
        return f"Fix: write the path in full, {path}"
    try:
        beside = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())
    except OSError:
        # the folder above is missing too: suggest one for that
        return "" if path.parent == path else nearest_folder(str(path.parent))
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    if not near:
        return ""
    # as it was typed, ./ and all
    head = name[: len(name.rstrip("/")) - len(path.name)]
    return f"Fix: did you mean {head}{near[0]}?"


def unreachable(error: BaseException | None) -> bool:
    """Whether `error` comes from a hub that did not answer, and not from one that said no."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def model_folder(source: str, revision: str | None = None) -> Path | None:
    """The local folder of a checkpoint that has been loaded; for a hub id, its snapshot in the cache."""
    if Path(source).is_dir():
        return Path(source)
    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def origin(source: str, revision: str | None = None) -> dict[str, Any]:
    """``source`` (a hub id, or the name of a folder without its place), ``commit`` on the hub, stated ``license``.

    Args:
        source: folder or hub id of a checkpoint that has been loaded; empty for a model that was never on disk.
        revision: branch, tag or commit on the hub.
    """
    folder = model_folder(source, revision) if source else None
    local = bool(source) and Path(source).is_dir()
    return {
        "source": Path(source).resolve().name if local else source,
        "commit": folder.name if folder is not None and not local else None,
        "license": stated_license(source, revision) if folder is not None else None,
    }


def file_of(name: str, file: str, *, revision: str | None = None, **where: Any) -> Path | None:
    """One file of a checkpoint, from its folder, the hub or the cache; None where it cannot be had.

    Args:
        name: folder or hub id.
        file: its name there.
        revision: branch, tag or commit on the hub.
        where: what else says where files are (``subfolder``, ``cache_dir``, ``token``, ``local_files_only``).
    """
    found: Any = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )
    return None if found is None else Path(found)


def stated_license(source: str, revision: str | None = None) -> str | None:
    """The licence in the front matter of a checkpoint's model card; of a hub id the card is downloaded if it can be."""
    card = Path(source, "README.md")
    if not Path(source).is_dir():
        found = file_of(source, "README.md", revision=revision)
        if found is None:
            return None
        card = found
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---")
    if len(parts) < 3:
        return None
    try:
        matter = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    licence = matter.get("license") if isinstance(matter, dict) else None
    return str(licence) if licence else None


def _is_path(name: str) -> bool:
    if name.startswith((".", "~", "/")) or os.path.isabs(name) or name.count("/") > 1:
        return True
    if "/" in name and Path(name).parent.is_dir():
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False
