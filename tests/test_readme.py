"""README and docs/files.md stay true: the trees name what is there, and the commands exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")


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


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line for line in listed.splitlines() if (ROOT / line).exists()}


def test_every_entry_of_the_tree_exists_and_has_a_phrase() -> None:
    for name, phrase in {**tree(README), **tree(FILES)}.items():
        assert (ROOT / name).exists(), name
        assert phrase, name


def test_the_tree_leaves_out_no_module_of_the_package() -> None:
    named = tree(FILES)
    for path in tracked():
        if path.endswith(".py") and path.split("/")[0] in {"manticore", "projectors", "kernels"}:
            assert path in named or path.endswith("__init__.py"), f"{path} is missing in docs/files.md"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
