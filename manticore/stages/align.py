"""Fit the projectors in closed form, so that the components understand each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import manticore
from manticore.file_names import MODEL
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.commands import FROM_SCRATCH, search_command, words_for
from manticore.stages.records import Record
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan

if TYPE_CHECKING:
    from datasets import Dataset

    from manticore.hybrid.pretrained import ManticorePreTrainedModel
    from manticore.plan.costing import Costing
    from manticore.training.alignment import AlignmentReport


_OVERFITTED = 0.1
"""A fall of R² from the text fitted on to held-out text that is worth more text."""


@dataclass(frozen=True)
class Translation(Record):
    name: str = ""
    source: int | None = None
    target: int | None = None
    boundary: int | None = None
    r2: float | None = None
    r2_heldout: float | None = None
    r2_before: float | None = None
    kept: str | None = None


@dataclass(frozen=True)
class AlignRecord(Record):
    text: str = ""
    """What the projectors were fitted on."""
    tokens: int | None = None
    heldout_tokens: int | None = None
    steps: int | None = None
    flops: float | None = None
    seconds: float | None = None
    loss_before: float | None = None
    loss_closed_form: float | None = None
    loss_after: float | None = None
    withdrawn: tuple[str, ...] = ()
    steps_withdrawn: bool = False
    bos: str | None = None
    """The token that every pack of text began with, empty for none; None where nothing is known of it."""
    translations: tuple[Translation, ...] = ()


class Align(Stage):
    name = "align"
    note: ClassVar[str] = "alignment.json"

    def plan_line(self, recipe: Recipe) -> str:
        section = self.settings(recipe)
        return f"{section.tokens:,} tokens of {section.text}"

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        """The components alone up to the last boundary that is read, the sums of the regressions, the steps.

        Of the held-out text also the errors of the projectors as they are, and the loss before and after; not what is
        tried where that loss gets worse.
        """
        section, task, skeleton = self.settings(costing.recipe), costing.task, costing.skeleton
        length = task.length if section.text == "task" else section.length
        packs = max(2, section.tokens // length)
        fitted = packs - min(max(1, round(packs * section.holdout)), packs - 1)
        if task.vocab_size is not None and section.text != "task":
            skeleton = costing.lay_out(costing.sources, costing.shape, None)
        batch = {"batch_size": min(section.batch_size, fitted), "length": length}
        config = skeleton.hybrid.config
        translations = [t for t in skeleton.hybrid.mixing.translations() if t.source != t.target]
        # components of one feature space have nothing between them that could train
        trainable = "projectors" if translations else "frozen"
        cases, case = costing.without_mixture(skeleton, trainable, None, dtype=None, **batch)
        spaces = {space for t in translations for space in (t.source, t.target)}
        heldout = packs - fitted
        flops = costing.alone_flops(case, spaces) * packs
        widths = [c.hidden_size for c in config.components]
        pairs = {(t.source, t.target) for t in translations}
        products = sum(widths[k] ** 2 for k, _ in {source for source, _ in pairs})
        products += sum(widths[a[0]] * widths[b[0]] for a, b in {tuple(sorted(pair)) for pair in pairs})
        maps = sum(p.numel() for t in translations for p in t.projector.parameters() if p.dim() == 2)
        flops += 2 * (maps * heldout + products * packs) * length + case.flops * section.steps
        # with gradient steps the loss is measured once more
        flops += (3 if section.steps else 2) * case.forward_flops / case.micro_batch * heldout
        sums = 8 * (products + sum(widths[k] for k, _ in spaces))
        peak = max(cases.evaluation(None, **batch) + sums, case.peak() if section.steps else 0)
        costing.save_model(costing.tuned["supernet"].held)
        yield costing.judged(
            self.name, f"{fitted * length:,} tokens", peak, "a smaller align.batch_size",
            trained=case.held.trained if translations else 0, flops=flops,
        )  # fmt: skip

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.hybrid.modeling import ManticoreForCausalLM

        section = self.settings(run.recipe)
        hybrid = ManticoreForCausalLM.from_pretrained(run.path / "combine" / MODEL)
        text = task_text(run) if section.text == "task" else section.text
        report = manticore.align(hybrid, text, section, seed=run.recipe.seed, progress=run.progress(self.name))
        run.save(hybrid, folder)
        found = AlignRecord.written(text=section.text, **report.to_dict())
        losses = f"loss {report.loss_before:.3f} before, {report.loss_after:.3f} after"
        return Outcome({"align": found}, "; ".join([losses, *left_as_it_was(report)]))

    def next_command(self, out: str, hybrid: ManticorePreTrainedModel, settings: Mapping[str, Any]) -> str:
        if hybrid.tokenizer is None:
            return search_command(out, FROM_SCRATCH)
        given = {"source": settings["text"], "text_column": settings["text_column"], "bos": settings["bos"]}
        return search_command(out, words_for(hybrid, **given))


def left_as_it_was(report: AlignRecord | AlignmentReport) -> list[str]:
    """A clause for everything that alignment left as it was, and one where it had too little text."""
    said, fits = [], report.translations
    alone = [t for t in fits if t.kept is not None and t.r2 is None and t.name not in report.withdrawn]
    if alone:
        said.append(
            f"{len(alone)} of {len(fits)} projectors stay as they were: fitted ones translate held-out text worse"
        )
    if report.withdrawn and report.loss_closed_form is not None:
        everything = len(report.withdrawn) + len(alone) == len(fits)
        what = "all of them are" if everything else f"{len(report.withdrawn)} of {len(fits)} are"
        said.append(f"fitted projectors raise the held-out loss to {report.loss_closed_form:.3f}: {what} withdrawn")
    if report.steps_withdrawn:
        said.append("the gradient steps raise the held-out loss: withdrawn")
    both = [(t.r2, t.r2_heldout) for t in fits if t.r2 is not None and t.r2_heldout is not None]
    r2, heldout = max(both, key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))
    if r2 - heldout > _OVERFITTED:
        said.append(f"R² falls from {r2:.2f} on the fitted text to {heldout:.2f} on held-out text: more tokens help")
    return said


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
