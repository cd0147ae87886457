"""The examples of docs/composer.md run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from manticore.registry import entries

PAGE = (Path(__file__).resolve().parents[3] / "docs/composer.md").read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/composer.md", "exec"), names)


def test_every_method_is_on_the_page() -> None:
    for name in entries("design"):
        assert f"| `{name}` |" in PAGE, name
