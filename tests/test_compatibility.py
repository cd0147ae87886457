"""The table of what works names tests that exist, for every row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


def rows() -> list[list[str]]:
    """The cells of every row below a head."""
    table = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_every_row_says_what_how_and_where_it_is_shown() -> None:
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 3, row
        assert all(row), row
        assert row[1].startswith(("works", "refused")), row
    subjects = [row[0] for row in rows()]
    assert len(set(subjects)) == len(subjects)


def test_every_named_test_exists() -> None:
    for row in rows():
        named = re.findall(r"`([^`]+)`", row[-1])
        assert named, row
        for name in named:
            file, _, function = name.partition("::")
            assert file.startswith("tests/"), name
            assert f"\ndef {function + '(' if function else 'test_'}" in (ROOT / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b((?:tests|benchmarks)/[\w/]+\.(?:py|json))\b", text):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", text):
        assert (page.parent / target).exists(), target
