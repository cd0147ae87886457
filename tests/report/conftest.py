"""Fixtures: a complete record of a run, in memory and as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_records import build_record, write_record


@pytest.fixture
def record() -> dict[str, Any]:
    return build_record()


@pytest.fixture
def run_folder(tmp_path: Path, record: dict[str, Any]) -> Path:
    return write_record(tmp_path / "run", record)
