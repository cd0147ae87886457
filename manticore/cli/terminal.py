"""What the command line prints while it works: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from manticore.printing import OneLineFormatter, one_line, printable
from manticore.processes import is_first


class _Console(Console):
    """Prints names from elsewhere so that they cannot act on the terminal; its own colours and bars still can."""

    def render(self, *arguments: Any, **named: Any) -> Iterator[Segment]:
        for segment in super().render(*arguments, **named):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


# of several processes that share a training the first one speaks
console = _Console(highlight=False, quiet=not is_first())

Step = Callable[[int, int, Mapping[str, Any]], None]
"""Called with (step, steps, logged row)."""


def say(text: str) -> None:
    """One plain line, whatever names it holds."""
    say_text(one_line(text))


def say_text(text: str) -> None:
    """Plain text of any number of lines."""
    console.print(text, markup=False, soft_wrap=True)


def done(path: str | Path, next_command: str) -> None:
    """The last lines of every verb: what was written, and the command that comes next."""
    say(f"wrote {path}")
    say(f"next: {next_command}")


def say_quantization(name: str, model: Any) -> None:
    """What a model's scores are of, where its weights came quantised; nothing of others."""
    from manticore.components.checkpoint_folder import dequantized, quantization_of

    if (kind := quantization_of(model)) is not None:
        say(dequantized(name, kind))


def quiet_libraries() -> None:
    """Import what models need, and keep the libraries' own bars and advice out of the output.

    To be called before a verb imports anything of models. Warnings of this package still appear.
    """
    _import_libraries()
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    else:
        # read when it is imported, which takes long and not every verb needs
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|datasets)\b")
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING if is_first() else logging.ERROR, handlers=[handler])


def _import_libraries() -> None:
    if "transformers.modeling_utils" in sys.modules:
        return
    # hundreds of thousands of objects that stay: looking for garbage among them, now and later, is a tenth of the time
    collects = gc.isenabled()
    gc.disable()
    try:
        import transformers.modeling_utils  # noqa: F401
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def progress_bar(what: str) -> Iterator[Step]:
    """A callback for training progress, shown as a bar, or as a line per tenth where there is no terminal."""
    if console.is_terminal:
        with _bar() as bar:
            yield _Live(bar, what)
    else:
        yield _Lines(what)


class RunReporter:
    """Shows a run: a line per finished stage, and how far the current one is."""

    def __init__(self, stages: list[str]) -> None:
        self._stages = stages
        self._bar: Progress | None = None
        self._step: Step | None = None
        self._what = ""

    def started(self, stage: str, plan: str) -> None:
        say(f"{self._number(stage)} {stage}: {plan}")

    def skipped(self, stage: str, seconds: float, outcome: str) -> None:
        say(f"{self._number(stage)} {stage}: done before in {_time(seconds)}: {outcome}")

    def finished(self, stage: str, seconds: float, outcome: str) -> None:
        self.close()
        say(f"{' ' * len(self._number(stage))} {outcome}, {_time(seconds)}")

    def progress(self, what: str, step: int, steps: int, loss: float | None) -> None:
        if what != self._what or self._step is None:
            self.close()
            self._what = what
            if console.is_terminal:
                self._bar = _bar()
                self._bar.start()
                self._step = _Live(self._bar, what)
            else:
                self._step = _Lines(what)
        self._step(step, steps, {} if loss is None else {"loss": loss})

    def close(self) -> None:
        """Take down the live line, also after an error."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._step = None

    def _number(self, stage: str) -> str:
        return f"[{self._stages.index(stage) + 1}/{len(self._stages)}]"


class _Live:
    def __init__(self, bar: Progress, what: str) -> None:
        self._bar = bar
        self._task = bar.add_task(what, total=None, loss="")

    def __call__(self, step: int, steps: int, row: Mapping[str, Any]) -> None:
        loss = _said(row)
        self._bar.update(self._task, completed=step, total=steps, loss=loss)


class _Lines:
    def __init__(self, what: str) -> None:
        self._what = what
        self._tenth = -1

    def __call__(self, step: int, steps: int, row: Mapping[str, Any]) -> None:
        tenth = 10 * step // max(1, steps)
        if tenth > self._tenth:
            self._tenth = tenth
            loss = _said(row)
            say(f"      {self._what}: {step}/{steps}{', ' if loss else ''}{loss}")


def _said(row: Mapping[str, Any]) -> str:
    """A row's loss, or the best so far of a study of designs, in a few words."""
    return ", ".join(f"{name} {value:.3f}" for name, value in row.items() if name == "loss" or name.startswith("best "))


def _bar() -> Progress:
    return Progress(
        TextColumn("      {task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def say_metrics(metrics: dict[str, float]) -> None:
    """Scores, in one line."""
    say(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
