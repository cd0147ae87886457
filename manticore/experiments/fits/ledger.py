"""Tables of runs, from wherever they are: what a fit reads of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manticore.errors import ManticoreError, told
from manticore.experiments.fits.bootstrap import finite
from manticore.paths import expanded

NUMBERS = ("flops", "parameters", "tokens", "loss")
"""What every run has to say of itself, all above zero."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        architecture: runs of one are on one curve.
        flops: of the training.
        parameters: those that its size is measured by, embeddings or not as whoever made the table decided.
        tokens: trained on.
        loss: held out, in nats per token.
        state: numbers that decoding keeps, at the length that the table is about; None where it does not say.
    """

    architecture: str
    flops: float
    parameters: float
    tokens: float
    loss: float
    state: float | None = None


def read_runs(source: str | Path | Iterable[Mapping[str, Any] | Run]) -> list[Run]:
    """The runs of a table.

    Args:
        source: a file of JSON (a list, or an object with one as ``runs``) or of JSON lines, or its rows. A row has
            ``architecture``, ``flops``, ``parameters``, ``tokens``, ``loss`` and may have ``state``; what else it has
            is not read.

    Raises:
        ManticoreError: the file cannot be read, a row lacks one of them or has a number that cannot be right; the row
            is named.
    """
    where = str(source) if isinstance(source, str | Path) else "runs"
    if isinstance(source, Mapping) or not isinstance(source, str | Path | Iterable):
        raise ManticoreError(f"runs: a {type(source).__name__} (expected a file, or rows). Fix: a list of objects")
    rows = _rows(expanded(source)) if isinstance(source, str | Path) else list(source)
    if not rows:
        raise ManticoreError(f"{where}: holds no run. Fix: a row for each training")
    return [row if isinstance(row, Run) else _run(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]


def _rows(path: Path) -> list[Any]:
    with told(str(path), "cannot be read", "a file of JSON or of JSON lines", OSError, ValueError):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    rows = found.get("runs") if isinstance(found, Mapping) else found
    if not isinstance(rows, list):
        raise ManticoreError(f"{path}: no list of runs. Fix: a list of objects, or an object that has one as 'runs'")
    return rows


def _run(row: object, where: str) -> Run:
    if not isinstance(row, Mapping):
        raise ManticoreError(f"{where}: a {type(row).__name__} (expected an object). Fix: {', '.join(NUMBERS)}, …")
    if not isinstance(row.get("architecture"), str) or not row["architecture"]:
        raise ManticoreError(f"{where}: architecture is {row.get('architecture')!r}. Fix: a name, as text")
    numbers: dict[str, float] = {}
    for name in (*NUMBERS, *(["state"] if row.get("state") is not None else [])):
        value = row.get(name)
        # a model without a cache keeps nothing
        if not finite(value) or value < 0 or (value == 0 and name not in ("loss", "state")):
            shown = "missing" if value is None else f"{value!r}"
            raise ManticoreError(f"{where}: {name} is {shown} (expected a number above 0). Fix: leave the run out")
        numbers[name] = float(value)
    return Run(row["architecture"], **numbers)
