"""Trials that another study has trained already: a study by other objectives takes them over instead of training anew.

What a trial finds out depends on the seed, the design and how it is trained, and not on what designs are judged by. So
a study whose trainings are the same ends with the record of one that has trained everything itself. What needs no
training is measured anew: counted measures at the study's own workload, timed ones on its own machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.design_settings import Design
from manticore.errors import ManticoreError, in_brief
from manticore.file_names import STUDY
from manticore.paths import expanded
from manticore.runs.ledger import CONDITIONS, INPUTS, SETTINGS, key, read_record, say_changed

if TYPE_CHECKING:
    from manticore.search.designs.result import StudyResult
    from manticore.search.designs.training import Trained
    from manticore.stacks.configuration import StackConfig

TRAINING = "training"
"""Of a study's record: what its trainings depend on beside the design."""
BASELINE = "baseline "
"""What the name of a baseline begins with, among those of designs."""
_FIX = "leave reuse out, or give the folder of a study that has ended"


@dataclass(frozen=True)
class Earlier:
    """A design, and what its training in another study has found out."""

    layers: list[Any]
    trained: Trained

    def taken_over(self, config: StackConfig, most: Mapping[int, float]) -> Trained | None:
        """What training the stack would find out; None where that is not known.

        Args:
            config: of the design in this study.
            most: point of its curve, from 1 → the loss above which it is stopped there.
        """
        if self.layers != json.loads(json.dumps(config.layers)):
            return None
        losses = [loss for _, loss in self.trained.curve]
        # a whole curve's last point is the end, where nothing is stopped any more
        at = [point for point, loss in enumerate(losses, 1) if loss > most.get(point, math.inf)]
        whole = self.trained.stopped is None
        if (whole and any(point < len(losses) for point in at)) or (not whole and at[:1] != [len(losses)]):
            return None
        return replace(self.trained, taken_over=True)


def training_key(settings: Mapping[str, Any], inputs: Mapping[str, str], *, device: str) -> dict[str, Any]:
    """What all trainings of a study depend on, as JSON values.

    Args:
        settings: of the study.
        inputs: digests of what is read.
        device: that trains.
    """
    import torch

    wanted = {name: value for name, value in settings.items() if name not in Design.judging}
    found = key({**wanted, "device": device}, inputs)
    return {**found, CONDITIONS: {"scan": found[CONDITIONS]["scan"], "torch": torch.__version__}}


def earlier_trainings(source: str | Path | StudyResult, now: Mapping[str, Any]) -> dict[str, Earlier]:
    """The trials and baselines of another study by name, those that failed left out.

    Args:
        source: the other study: its folder, or what ``manticore.design`` has returned.
        now: :func:`training_key` of this one.

    Raises:
        ManticoreError: no such study, a damaged one, or one whose trainings are others: the first difference is named.
    """
    if isinstance(source, (str, Path)):
        path = expanded(source, "reuse") / STUDY
        where, record = f"design: reuse: {path}", read_record(path, _FIX)
        if record is None:
            raise ManticoreError(
                f"{where}: no such file. Fix: give the folder of a study that manticore design has made"
            )
    else:
        where, record = "design: reuse: that study", json.loads(json.dumps(getattr(source, "record", None)))
    try:
        _refuse_another(record[TRAINING], now, where)
        return {name: _earlier(row) for name, row in rows_by_name(record).items() if row["failed"] is None}
    except (KeyError, TypeError, AttributeError) as error:
        raise ManticoreError(
            f"{where}: does not say how its designs were trained, as one of an older version. Fix: leave reuse out"
        ) from error


def rows_by_name(record: Mapping[str, Any]) -> dict[str, Any]:
    """The trials of a study's record by their designs, and its baselines by ``baseline NAME``."""
    rows = {row["design"]: row for row in record["trials"]}
    return rows | {f"{BASELINE}{row['name']}": row for row in record["baselines"]}


def _earlier(row: Mapping[str, Any]) -> Earlier:
    from manticore.search.designs.training import Trained

    parts = ("repeats", "curve", "flops", "stopped")
    return Earlier(row["layers"], Trained(**{name: row[name] for name in parts}))


def _refuse_another(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    for part in (SETTINGS, INPUTS):
        for name in sorted({*before[part], *now[part]}):
            old, new = before[part].get(name), now[part].get(name)
            if old != new:
                what = f"another {name}" if part == INPUTS else f"{name}={in_brief(repr(old), 100)}"
                got = f"sha256 {str(new)[:12]}, its own {str(old)[:12]}" if part == INPUTS else in_brief(repr(new), 100)
                raise ManticoreError(
                    f"{where}: its designs were trained with {what} (got {got}). "
                    "Fix: the same training, or leave reuse out"
                )
    say_changed(before[CONDITIONS], now[CONDITIONS], where)
