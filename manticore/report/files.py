"""Files that are whole or not there: written aside, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_aside(target: Path, content: bytes) -> None:
    """Replace ``target`` in one step: readers see the old file or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        # mkstemp's 0600 would hide a report from the colleagues a run folder is shared with.
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
