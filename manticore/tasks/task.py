"""A task: data in three splits, how long its examples are, and how a model is scored on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from manticore import registry
from manticore.errors import ManticoreError
from manticore.making import make
from manticore.schema.options import options_of
from manticore.tasks.metrics import MetricState

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

_LENGTH = "seq_len"
"""The option that says how long the examples of a synthetic task are."""
Backbone = Literal["causal", "autoencoder"]
"""How a model reads: position t sees the tokens up to t, or one vector must carry the whole sequence."""


@dataclass(frozen=True)
class Task:
    """What training, search and evaluation need to know about a task.

    Raises:
        ManticoreError: a label that is none of the classes.
    """

    name: str
    vocab_size: int | None
    """Rows of embeddings and head; None: the components' own tokenizer, embeddings and heads are used."""
    length: int
    """Tokens per example, at most."""
    data: DatasetDict
    """Splits ``train``, ``validation``, ``test`` with the columns ``input_ids`` and ``targets`` (and
    ``attention_mask`` where examples are padded). ``targets[t]`` is what position t must predict, -100 where
    nothing is scored: they are aligned, no model shifts them. A task with classes has a ``label`` per example in their
    place, and examples as long as they are; of two documents the second is ``input_ids_2``."""
    primary_metric: str
    """The metric that decides comparisons: one of those that ``metric_state`` computes."""
    higher_is_better: bool
    metric_state: Callable[[], MetricState]
    """Makes an empty accumulator of metrics."""
    chance: float | None = None
    """The primary metric of a uniform guess, where that is known."""
    backbone: Backbone = "causal"
    """The kind of model that the task is made for; a class of models that is not causal says so in its attribute
    ``backbone``."""
    num_classes: int | None = None
    """An example belongs to one of so many classes; None: every position has a target of its own."""
    documents: int = 1
    """Sequences per example: 1, or 2 that are compared."""
    pad_token_id: int | None = None
    """The id that fills up shorter examples of a task with classes; None: all are equally long."""
    bos: str | None = None
    """The BOS token that every example begins with, empty where text begins with none; None: no text."""
    sources: tuple[str, ...] = ()
    """Names of the texts that it is a mixture of, where it is one: the rows' column ``sources`` has an index into them
    for each target, which ``metric_state`` is given too."""
    read_with: Callable[[PreTrainedTokenizerBase], Task] | None = None
    """The same text in the tokens of another tokenizer; None where no tokenizer is needed, or that cannot be done."""
    at_length: Callable[[int], Task] | None = None
    """The same task with another ``seq_len``; None where it has no such option."""

    def __post_init__(self) -> None:
        classes = self.num_classes
        if classes is None:
            return
        for split, rows in self.data.items():
            labels = np.asarray(rows.with_format("numpy")["label"][:])
            wrong = np.flatnonzero((labels < 0) | (labels >= classes))
            if len(wrong):
                raise ManticoreError(
                    f"{self.name}: {split}, row {wrong[0]}: label out of range (got {labels[wrong[0]]}, expected 0 to "
                    f"{classes - 1}). Fix: other rows, or another number of classes"
                )

    @property
    def tokens_per_example(self) -> int:
        """What an example costs in tokens, filling included."""
        return self.length * self.documents


def load_task(name: str, *, tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0, **options: Any) -> Task:
    """Build the registered task ``name``.

    Args:
        name: for instance ``"mad/in-context-recall"`` or ``"text"``.
        tokenizer: passed to tasks that read text.
        seed: the run's seed, passed to tasks that name it. The shipped tasks do not: their data belong to the
            benchmark, not to the run, and change only with their option ``data_seed``.
        options: the task's own options.

    Raises:
        ManticoreError: no such task, an option it does not have, or a value it cannot take.
    """
    task: Task = make("task", name, options=options, given={"tokenizer": tokenizer, "seed": seed})
    if _LENGTH in (options_of("task", name) or {}):
        given = {"tokenizer": tokenizer, "seed": seed, **options}
        task = replace(task, at_length=lambda length: load_task(name, **{**given, _LENGTH: length}))
    if "tokenizer" not in inspect.signature(registry.resolve("task", name)).parameters:
        return task
    return replace(task, read_with=lambda other: load_task(name, tokenizer=other, seed=seed, **options))
