"""The table of what works names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    """The cells of every row below the head."""
    table = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1:]]


def test_every_row_says_what_how_and_where_it_is_shown() -> None:
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 3, row
        assert all(row), row


def test_every_named_test_exists() -> None:
    for row in rows():
        named = re.findall(r"`([^`]+)`", row[-1])
        assert named, row
        for name in named:
            file, _, function = name.partition("::")
            assert (ROOT / file).is_file(), name
            if function:
                assert f"\ndef {function}(" in (ROOT / file).read_text(encoding="utf-8"), name
