"""Texts that every machine has, without a download: Python's standard library, and English out of docstrings.

The two share no file: ``stdlib`` is code with all that stands in it, ``docstrings`` is prose of other packages.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from manticore.tasks.text_sources import DOCSTRINGS, STDLIB

PACKAGES = (
    "matplotlib",
    "numpy",
    "pandas",
    "sqlalchemy",
    "torch",
    "transformers",
    "huggingface_hub",
    "optuna",
    "datasets",
    "pydantic",
    "accelerate",
    "peft",
)
"""Whose docstrings are read, in this order; all come with Manticore, in any version that it works with."""

_NO_SOURCES = {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "__pycache__"}
_DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.*?)"""[ \t]*$', re.MULTILINE | re.DOTALL)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_WORD = re.compile(r"""["'(]*[A-Za-z]+(?:['’-][A-Za-z]+)*[)"']*[.,;:!?]*[)"']*""")
_LEAST_WORDS = 8
_PLAIN = 0.9


def decoded(content: bytes) -> str | None:
    """The text, or None for what is not UTF-8 text; bytes stay as they are, line ends included."""
    if b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def standard_library() -> Iterator[str]:
    """The source files of the running interpreter's standard library, without its tests."""
    yield from _sources(Path(sysconfig.get_path("stdlib")))


def docstrings() -> Iterator[str]:
    """English prose: for each source file of :data:`PACKAGES` the paragraphs of its docstrings that are sentences.

    A paragraph counts as prose if it begins with a capital, ends as a sentence does, and at least nine of ten of its
    words, eight or more, are made of letters alone; what is lined up in columns is none. Each paragraph counts once,
    where it stands first.
    """
    seen: set[str] = set()
    for package in PACKAGES:
        # not imported: what an import runs is not needed, and takes seconds
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or [] if spec is not None else []:
            for source in _sources(Path(folder)):
                kept = [paragraph for paragraph in _prose(source) if paragraph not in seen]
                if kept:
                    seen.update(kept)
                    yield "\n\n".join(dict.fromkeys(kept)) + "\n"


READERS: Mapping[str, Callable[[], Iterator[str]]] = {STDLIB: standard_library, DOCSTRINGS: docstrings}
"""Name of a text → its documents, in a fixed order, read one after the other."""


def _sources(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if _NO_SOURCES.isdisjoint(path.relative_to(root).parts) and (text := decoded(path.read_bytes())) is not None:
            yield text


def _prose(source: str) -> Iterator[str]:
    for found in _DOCSTRING.finditer(source):
        for paragraph in _PARAGRAPHS.split(inspect.cleandoc(found[1])):
            lines = [line.strip() for line in paragraph.strip().splitlines()]
            words = " ".join(lines).split()
            if len(words) < _LEAST_WORDS or not words[0][0].isupper() or words[-1][-1] not in ".!?":
                continue
            # columns of a table are lined up
            if any("   " in line for line in lines):
                continue
            if sum(_WORD.fullmatch(word) is not None for word in words) >= _PLAIN * len(words):
                yield "\n".join(lines)
