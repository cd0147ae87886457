"""The settings of the MAD benchmark: a baseline per task, and changes to it one at a time.

Source: Poli et al. 2024, arXiv 2403.17844, as the public benchmark lists them: 66 settings; more tokens, longer
sequences, fewer training examples, more noise, more to copy. No two changes are ever combined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manticore import registry
from manticore.errors import ManticoreError
from manticore.tasks.mad.examples import KINDS, Arrays, generate

if TYPE_CHECKING:
    from manticore.tasks.task import Task

EXAMPLES = "num_train_examples"
_FEWER = {EXAMPLES: (6400, 3200, 1600, 800)}
_LARGER = {"vocab_size": (32, 64, 128)}

CHANGES: dict[str, dict[str, tuple[int | float, ...]]] = {
    "in-context-recall": {**_LARGER, "seq_len": (256, 512, 1024), **_FEWER},
    "noisy-in-context-recall": {
        "vocab_size": (48, 80, 144),
        "seq_len": (256, 512, 1024),
        **_FEWER,
        "frac_noise": (0.4, 0.6, 0.8),
    },
    "fuzzy-in-context-recall": {**_LARGER, "seq_len": (256, 512, 1024), **_FEWER},
    "selective-copying": {**_LARGER, "seq_len": (512, 1024), **_FEWER, "num_tokens_to_copy": (32, 64, 96)},
    "compression": {**_LARGER, "seq_len": (64, 128, 256), **_FEWER},
    "memorization": {"vocab_size": (512, 1024, 2048, 4096, 8192)},
}
"""Task → option → the values it takes one at a time, all else as in the baseline."""


@dataclass(frozen=True)
class Setting:
    """A setting of a task: its baseline with some options changed; the benchmark changes none or one."""

    task: str
    """The task's name without ``mad/``."""
    changes: tuple[tuple[str, int | float], ...] = ()
    """Options and the values that replace the baseline's."""

    @property
    def name(self) -> str:
        """For instance ``"in-context-recall/baseline"`` or ``"in-context-recall/vocab_size=32"``."""
        changed = ",".join(f"{option}={value}" for option, value in self.changes)
        return f"{self.task}/{changed or 'baseline'}"

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the setting but the number of training examples."""
        return {**KINDS[self.task].baseline, **{key: value for key, value in self.changes if key != EXAMPLES}}

    @property
    def num_train_examples(self) -> int:
        """Training examples."""
        return int(dict(self.changes).get(EXAMPLES, KINDS[self.task].num_train_examples))

    def generate(self, *, cache: bool = True) -> dict[str, Arrays]:
        """The published data of this setting: inputs and targets of ``train`` and ``test``."""
        return generate(self.task, num_train_examples=self.num_train_examples, cache=cache, **self.options)

    def load(self) -> Task:
        """The setting as a registered task, with a validation split."""
        from manticore.tasks.task import load_task

        changes: dict[str, Any] = dict(self.changes)
        return load_task(f"mad/{self.task}", **changes)


def settings(tasks: Sequence[str] | None = None, *, baseline_only: bool = False) -> list[Setting]:
    """The settings of `tasks` (all six by default), each task's baseline first.

    Raises:
        ManticoreError: no such task.
    """
    chosen = list(KINDS) if tasks is None else [task.removeprefix("mad/") for task in tasks]
    found = []
    for task in chosen:
        if task not in KINDS:
            raise ManticoreError(f"mad: unknown task {task!r}{registry.did_you_mean(task, list(KINDS))}")
        found.append(Setting(task))
        if not baseline_only:
            found += [Setting(task, ((option, value),)) for option, values in CHANGES[task].items() for value in values]
    return found
