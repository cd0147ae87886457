"""README and CONTRIBUTING stay true: the files that they name are there, and their commands exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def tree(page: str) -> dict[str, str]:
    """Path → phrase, from the last code block."""
    block = page.rsplit("```", 2)[1]
    found: dict[str, str] = {}
    folder = ""
    for line in block.strip().splitlines():
        name, _, phrase = line.strip().partition("  ")
        if line.startswith(" "):
            name = folder + name
        elif name.endswith("/"):
            folder = name
        found[name] = phrase.strip()
    return found


def test_every_entry_of_the_tree_exists_and_has_a_phrase() -> None:
    for name, phrase in tree(README).items():
        assert (ROOT / name).exists(), name
        assert phrase, name


def test_every_file_that_contributors_are_sent_to_exists() -> None:
    named = re.findall(r"`([\w.]+/[\w./]*)`", CONTRIBUTING)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists(), name


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([\w-]+)", README + CONTRIBUTING):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
