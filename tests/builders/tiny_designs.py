"""A small study of designs: six lists of attention and SwiGLU on a text of repeated words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = "".join(f"the {a} {b} of the {c} is {d}.\n" for a in "abcd" for b in "efgh" for c in "ijkl" for d in "mnop")
SPACE = {"primitives": ["attention", "swiglu"], "layers": 3, "width": 8}
QUICK: dict[str, Any] = {
    "space": "layers",
    "space_options": SPACE,
    "length": 16,
    "batch_size": 4,
    "steps": 3,
    "validation_examples": 8,
    "workload": "tokens=32",
    "trials": 6,
    "method": "evolution",
    "method_options": {"population": 4, "generations": 2},
    "baselines": False,
}


def written_text(folder: Path) -> Path:
    """A file of text, long enough for three splits."""
    file = folder / "words.txt"
    file.write_text(WORDS * 8)
    return file


def recipe(folder: Path, **changes: Any) -> Path:
    """A recipe file of the small study."""
    import json

    file = folder / "tiny.yaml"
    section = {**QUICK, "text": str(written_text(folder)), **changes}
    file.write_text(json.dumps({"name": "tiny", "seed": 0, "design": section}))
    return file


def untimed(record: Any) -> Any:
    """A record without what a clock has measured, and without its file's digest, which counts that too."""
    if isinstance(record, dict):
        return {name: untimed(item) for name, item in record.items() if name not in ("seconds", "sha256")}
    return [untimed(item) for item in record] if isinstance(record, list) else record
