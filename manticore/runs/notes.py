"""What a verb notes beside the model that it wrote: how it was aligned, searched or fine-tuned, on which data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError

ALIGNED, SEARCHED, TUNED = "alignment.json", "search.json", "finetune.json"


def read_note(file: Path) -> dict[str, Any]:
    """The note, or nothing where there is none.

    Raises:
        ManticoreError: it cannot be read.
    """
    if not file.is_file():
        return {}
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManticoreError(f"{file}: cannot be read as JSON. Fix: remove it, the card will do without") from error
    return note if isinstance(note, dict) else {}
