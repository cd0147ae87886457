"""What several tests read and none changes, made once for all the processes that tests are spread over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled.

    A fixture of a module is made again by every process of pytest-xdist that has a test of the module; where it trains
    for long, that is most of what the tests take.

    Args:
        tmp_path_factory: pytest's.
        name: of the folder, no other test's.
        make: called with the new folder, in one of the processes; the others wait for it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # each process has a folder in that of all
        root = root.parent
    folder, made = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
