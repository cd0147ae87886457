"""Keep one component per block, drop the rest, and score what that changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import manticore
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.settings import Evaluate
from manticore.stages.commands import FROM_SCRATCH, finetune_command, noted_task, words_for
from manticore.stages.records import Record
from manticore.stages.run import Run
from manticore.stages.search import Search
from manticore.stages.stage import Stage, StagePlan

if TYPE_CHECKING:
    from manticore.hybrid.pretrained import ManticorePreTrainedModel
    from manticore.plan.costing import Costing

EVALUATION_BATCH = Evaluate().batch_size


@dataclass(frozen=True)
class DiscretizeRecord(Record):
    path: tuple[int, ...] = ()
    loss_before: float | None = None
    loss_after: float | None = None
    loss_finetuned: float | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    metric_finetuned: float | None = None


class Discretize(Stage):
    name = "discretize"

    def plan_line(self, recipe: Recipe) -> str:
        return "one component per block"

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        tuning, section = recipe.finetune, self.settings(recipe)
        found = {"start": tuning.start, "test_examples": tuning.test_examples}
        return {**section.model_dump(exclude_none=True), "path": section.path, **found}

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        """Scoring: of the supernet and the hybrid before fine-tuning, of the hybrid after it."""
        task, tuned = costing.task, costing.tuned
        examples = costing.recipe.finetune.test_examples or task.test_examples or 0
        batch = min(EVALUATION_BATCH, examples or EVALUATION_BATCH)
        forward = tuned["supernet"].forward_flops + 2 * tuned["costliest"].forward_flops
        flops = examples * task.sequences * forward / tuned["supernet"].micro_batch
        peak = costing.cases.evaluation(None, batch_size=batch * task.sequences, length=task.length)
        costing.save_model(tuned["costliest"].held)
        what = f"3 × {examples:,} examples" if examples else "as long as the text: not counted"
        yield costing.judged("evaluate", what, peak, "larger devices", flops=flops)

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.hybrid.found import chosen_elsewhere

        scored = run.recipe.finetune.test_examples
        score = lambda model: manticore.evaluate(model, run.task, max_examples=scored)  # noqa: E731
        searched = run.searched()
        path = chosen_elsewhere(self.settings(run.recipe), searched.config) or run.results_of("search").get("path")
        path = path or manticore.discretize(searched).config.path
        if run.by_candidates:
            # nothing was soft: the path stands as the search has trained it, or as it was before
            trained = run.begun(path) is not None
            small = searched if trained else run.discrete(path, run.recipe.seed)
            run.save(small, folder)
            after = score(small)
            scores = {"loss_after": after["loss"], "metric_after": after[run.task.primary_metric]}
            found = DiscretizeRecord.written(path=path, **scores)
            how = "as the search has left it" if trained else "before its fine-tuning"
            return Outcome({"discretize": found}, f"{run.path_text(path)}, {how}")
        run.save(run.discrete(path, run.recipe.seed), folder)
        before, after = score(searched), score(manticore.discretize(searched, path))
        metric = run.task.primary_metric
        found = DiscretizeRecord.written(
            path=path,
            loss_before=before["loss"],
            loss_after=after["loss"],
            metric_before=before[metric],
            metric_after=after[metric],
        )
        summary = f"{run.path_text(path)}, loss {before['loss']:.3f} soft, {after['loss']:.3f} discrete"
        return Outcome({"discretize": found}, summary)

    def next_command(self, out: str, hybrid: ManticorePreTrainedModel, searched: str) -> str:
        """Fine-tune it on the task that it was searched on, where that is known.

        Args:
            out: folder of the small hybrid.
            hybrid: the small hybrid.
            searched: folder of the supernet.
        """
        words = noted_task(Path(searched) / Search.note)
        return finetune_command(out, out, words or (FROM_SCRATCH if hybrid.tokenizer is None else words_for(hybrid)))
