"""Experiment trackers (TensorBoard, trackio, Weights & Biases, …): transformers' callbacks, by their names there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from manticore.errors import ManticoreError
from manticore.registry import did_you_mean

PROJECT = "manticore"
"""What trackers that sort runs by project are told."""


def trackers(names: str | Sequence[str] | None, out: str | Path | None, *, stage: str) -> list[TrainerCallback]:
    """One callback per tracker, told every logged row; a row's tables arrive as one number per cell.

    Args:
        names: as in transformers' ``report_to``, such as ``"tensorboard"``; None is none.
        out: folder of the training; TensorBoard writes to ``tensorboard/`` in it, unless
            ``TENSORBOARD_LOGGING_DIR`` says where.
        stage: the verb that error messages begin with.

    Raises:
        ManticoreError: no such tracker, one that is not installed, or TensorBoard without a folder.
    """
    return [_tracker(name, out, stage) for name in ([names] if isinstance(names, str) else names or ())]


def _tracker(name: str, out: str | Path | None, stage: str) -> TrainerCallback:
    if name not in INTEGRATION_TO_CALLBACK:
        raise ManticoreError(
            f"{stage}: report_to: no tracker {name!r}{did_you_mean(str(name), sorted(INTEGRATION_TO_CALLBACK))}"
        )
    kind: Any = INTEGRATION_TO_CALLBACK[name]

    class Told(kind):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            super().on_log(args, state, control, logs=flat(logs or {}), **kwargs)

    try:
        told = Told()
    except (ImportError, RuntimeError, AssertionError) as error:
        raise ManticoreError(
            f"{stage}: report_to: {name} cannot be used ({' '.join(str(error).split())}). "
            f"Fix: install it, or leave report_to out"
        ) from error
    if name == "tensorboard" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        if out is None:
            raise ManticoreError(f"{stage}: report_to: tensorboard has no folder to write to. Fix: give out")
        told.logging_dir = str(Path(out) / "tensorboard")
    return told


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a": [[1, 2]]}`` → ``{"a/0/0": 1, "a/0/1": 2}``."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list | tuple):
            found |= flat({f"{name}/{index}": item for index, item in enumerate(value)})
        else:
            found[name] = value
    return found
