"""Fit the projectors in closed form, so that the components understand each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import manticore
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.run import Run
from manticore.stages.stage import MODEL, Stage

if TYPE_CHECKING:
    from datasets import Dataset


class Align(Stage):
    name = "align"

    def plan_line(self, recipe: Recipe) -> str:
        section = self.settings(recipe)
        return f"{section.tokens:,} tokens of {section.text}"

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.hybrid.modeling import ManticoreForCausalLM

        section = self.settings(run.recipe)
        hybrid = ManticoreForCausalLM.from_pretrained(run.path / "combine" / MODEL)
        settings = section.model_dump()
        if section.text == "task":
            settings["text"] = task_text(run)
        report = manticore.align(hybrid, seed=run.recipe.seed, progress=run.progress(self.name), **settings)
        run.save(hybrid, folder)
        found = {"text": section.text, **report.to_dict()}
        return Outcome({"align": found}, f"loss {report.loss_before:.3f} before, {report.loss_after:.3f} after")


def task_text(run: Run) -> Dataset:
    """The task's training rows with what they ask for, so that losses and gradient steps are the task's own.

    Rows of a task with classes ask for nothing that a language model could say; they are text like any other.
    """
    from datasets import Dataset

    from manticore.training.batches import Collator

    task, align = run.task, run.recipe.align
    train = task.data["train"]
    if task.num_classes is not None:
        wanted = 0 if align is None else align.tokens // task.length
        rows = train.select(range(min(len(train), max(2, wanted))))
        batch = Collator(task.length)(list(rows.with_format("numpy")))
        columns = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
        return Dataset.from_dict(columns).with_format("torch")
    return train.select_columns([n for n in ("input_ids", "targets", "attention_mask") if n in train.column_names])
