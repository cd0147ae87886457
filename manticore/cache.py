"""Where results are kept that can be made again: one folder, entries named by the hash of what made them.

The folder is ``~/.cache/manticore``, or the value of ``MANTICORE_CACHE``.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder(kind: str) -> Path:
    """The folder of one kind of entries; it need not exist yet."""
    root = os.environ.get("MANTICORE_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "manticore") / kind


def content_key(content: Any) -> str:
    """24 hex digits that stand for ``content``: anything JSON can hold; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
