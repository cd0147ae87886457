"""What the models of a comparison write, kept beside their scores and counted by none of them.

Made after all trainings, one model at a time, so that its speed is not that of a machine which also trains.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from manticore.components.loading import own_tokenizer
from manticore.errors import ManticoreError
from manticore.experiments.budgets import Budget
from manticore.experiments.comparison_runs import ComparisonRuns, Run
from manticore.experiments.generating import EXAMPLES, check_generated, generated
from manticore.experiments.kept_weights import KeptWeights
from manticore.experiments.models import build, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WritingRow:
    """What one model writes, before any training or after the largest budget of fine-tuning."""

    model: str
    budget: int | None
    """Index into :attr:`Comparison.budgets`; None: as it was downloaded."""
    seed: int
    generated: dict[str, Any]
    """As :class:`~manticore.experiments.generating.Generated` has it; empty where there is none."""
    left_out: str
    """Why there is none."""


class Wanted(NamedTuple):
    """One row that there will be."""

    model: str
    budget: int | None
    train_flops: int


class Writings:
    """Lets models of a comparison write, or finds what they have written.

    Args:
        runs: with sources, tasks, settings and the log.
        lengths: of prompts, for recall and speed.
        tokenizer: for models that carry none; None takes the first one that a model has.

    Raises:
        ManticoreError: a task that nothing is written for, or lengths that hold no hidden key.
    """

    def __init__(self, runs: ComparisonRuns, lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._runs, self._lengths = runs, lengths
        self._tokenizers = {name: tokenizer_of(source) for name, source in runs.sources.items()}
        self._other = next((each for each in (tokenizer, *self._tokenizers.values()) if each is not None), None)
        checked = set()
        for name in runs.sources:
            task = runs.task_of(name)
            if id(task) not in checked:
                check_generated(task, self._tokenizers[name] or self._other, lengths)
                checked.add(id(task))

    def wanted(self, downloaded: Sequence[str], budgets: Sequence[Budget], stack: ExitStack) -> list[Wanted]:
        """The rows that there will be: every model before any training, where the table has that, and at the end.

        From here on the runs keep the weights that this takes.

        Args:
            downloaded: models that are scored as they were downloaded.
            budgets: all of the comparison.
            stack: whose end removes the weights where no folder is kept.
        """
        alone = [(index, budget.flops) for index, budget in enumerate(budgets) if not budget.with_spent]
        ends = dict.fromkeys([*(end for end in alone[:1] if end[1] == 0), alone[-1]])
        order = list(self._runs.sources)
        found = [Wanted(name, None, 0) for name in downloaded]
        found += [Wanted(name, *end) for end in ends for name in order if end[1] or name not in downloaded]
        where = self._runs.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = {(each.model, each.train_flops) for each in found if each.train_flops}
        self._runs.weights = KeptWeights(where / "weights", kept)
        return sorted(found, key=lambda each: order.index(each.model))

    def rows(self, wanted: Sequence[Wanted]) -> Iterator[WritingRow]:
        """One after the other; at their end the weights of the runs are removed."""
        for model, budget, flops in wanted:
            run = None if budget is None else self._runs.chosen(model, flops)
            seed = self._runs.seeds[0]
            kept = self._of(model, run)
            yield WritingRow(model, budget, seed, kept["generated"], kept["left_out"])
        if self._runs.weights is not None:
            self._runs.weights.drop()

    def _of(self, name: str, run: Run | None) -> dict[str, Any]:
        what = f"{name} · as downloaded" if run is None else str(run)
        key = f"{what} · writes after {', '.join(map(str, self._lengths))} tokens"
        self._runs.report(f"{name} · writes")
        if (found := self._runs.log.get(key)) is not None:
            return found
        why = self._runs.untrained(name)["left_out"] if run is None else ""
        written: Mapping[str, Any] = {}
        if not why:
            try:
                written = self._written(name, run)
            except ManticoreError as error:
                # the scores of all that has been trained are there, and stay
                why = str(error)
        return self._runs.log.add(key, {"generated": written, "left_out": why})

    def _written(self, name: str, run: Run | None) -> dict[str, Any]:
        runs = self._runs
        model: PreTrainedModel = build(runs.sources[name], runs.seeds[0]) if run is None else runs.model_of(run)
        if not runs.cpu and (device := torch.accelerator.current_accelerator(check_available=True)) is not None:
            model.to(device)  # type: ignore[arg-type]
        found = generated(
            model,
            runs.task_of(name),
            self._tokenizers[name] or own_tokenizer(model) or self._other,
            examples=min(runs.settings.test_examples or EXAMPLES, EXAMPLES),
            lengths=self._lengths,
        )
        return found.to_dict()
