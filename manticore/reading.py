"""Small files that this package has written itself, read as if somebody else had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError, closed, in_brief


def read_object(path: Path, fix: str) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file.

    Args:
        path: of the file.
        fix: what to do where it is damaged.

    Raises:
        ManticoreError: something else is there.
    """
    try:
        # a pipe would be waited for
        if not path.is_file():
            if path.exists():
                raise damaged(path, "not a regular file", fix)
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise closed(path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, in_brief(error, 100), fix) from error
    if not isinstance(value, dict):
        raise damaged(path, f"a {type(value).__name__}, expected an object", fix)
    return value


def damaged(path: Path, why: str, fix: str) -> ManticoreError:
    """What to raise for a file whose content is not what was written."""
    return ManticoreError(f"{path}: cannot be read ({why}). Fix: {fix}")
