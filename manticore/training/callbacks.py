"""What watches a training run: the metrics file, the clock and the progress bar."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after every logged step with (step, total steps, the logged row)."""


class LogAtCheckpoints(TrainerCallback):
    """Logs whenever a checkpoint is due.

    A checkpoint does not hold the loss summed since the last logged row, so a run resumed from between two rows
    would log another mean than the uninterrupted run. With a row at every checkpoint that sum is empty.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True


class MetricsFile(TrainerCallback):
    """``metrics.jsonl``: one row per logged step, also after a resume."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        # the checkpoint's history replaces rows that an interrupted run wrote after its last checkpoint
        aside = self._path.with_name(self._path.name + ".tmp")
        aside.write_text("".join(_line(row) for row in state.log_history if "loss" in row))
        os.replace(aside, self._path)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if state.is_world_process_zero and "loss" in row:
            with self._path.open("a") as file:
                file.write(_line(row))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


class Stopwatch(TrainerCallback):
    """Seconds of training, those of earlier sessions of a resumed run included."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self._before = seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before, self._started = self.seconds, None


class ProgressBar(TrainerCallback):
    """A bar on the terminal's error stream, or a call to the given function per logged step."""

    def __init__(self, stage: str, report: Progress | None = None) -> None:
        self._stage = stage
        self._report = report
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self._report is None:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self._stage, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if not state.is_world_process_zero or "loss" not in row:
            return
        if self._report is not None:
            self._report(state.global_step, state.max_steps, row)
        elif self._bar is not None:
            self._bar.set_postfix(loss=f"{row['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal in order, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
