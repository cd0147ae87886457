"""What this machine has room for."""

from __future__ import annotations

import os
from pathlib import Path


def machine_memory() -> int | None:
    """Bytes of this machine's memory; None where that is unknown, or where an accelerator has some of its own."""
    if any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dri", "/dev/accel")):
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
