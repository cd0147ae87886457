"""Which versions of transformers this package is tried on."""

from __future__ import annotations

import re

import transformers

FIRST, END = (5, 17), (5, 25)
"""Tried from the first minor version up to, and without, the other one; the package's requirement says the same."""


def is_known() -> bool:
    """Whether the installed minor version is one of those."""
    numbers = re.match(r"(\d+)\.(\d+)", transformers.__version__)
    return numbers is not None and FIRST <= (int(numbers[1]), int(numbers[2])) < END
