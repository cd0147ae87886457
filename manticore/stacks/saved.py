"""The stack of a folder that somebody names: a design, a scaled one, a trained one."""

from __future__ import annotations

from pathlib import Path

from manticore.errors import ManticoreError
from manticore.paths import expanded
from manticore.reading import read_object
from manticore.stacks.configuration import StackConfig


def saved_stack(folder: str | Path, where: str = "") -> StackConfig:
    """The configuration in a folder.

    Args:
        folder: with a ``config.json``.
        where: begins the message.

    Raises:
        ManticoreError: no configuration, or that of something else.
    """
    kind = StackConfig.model_type
    held = read_object(expanded(folder) / "config.json", "give the folder of a stack or of a design")
    if held is None or held.get("model_type") != kind:
        what = "no config.json" if held is None else f"a {held.get('model_type')} (expected a stack, {kind})"
        raise ManticoreError(f"{where}{folder}: {what}. Fix: give the folder of a stack or of a design")
    return StackConfig.from_pretrained(expanded(folder))
