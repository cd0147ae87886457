"""Put the components side by side, block by block, into one hybrid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import manticore
from manticore.runs.records import component_record, task_record
from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.run import Run
from manticore.stages.stage import Stage
from manticore.writing import write_json


class Combine(Stage):
    name = "combine"

    def plan_line(self, recipe: Recipe) -> str:
        names = " + ".join(component.name for component in recipe.components)
        return f"{names}, {recipe.combine.num_blocks} blocks, {recipe.combine.mixing}"

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        return {
            "components": [component.model_dump(mode="json") for component in recipe.components],
            "task": recipe.task.model_dump(mode="json"),
            "combine": recipe.combine.model_dump(mode="json"),
        }

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.runs.lineage import data_lineage, model_lineage

        recipe, align = run.recipe, run.recipe.align
        # the task's own vocabulary is there at once, unless text is to be read before
        fresh = align is None or align.text == "task"
        hybrid = manticore.combine(
            run.sources,
            revisions=[component.revision for component in recipe.components],
            vocab_size=run.task.vocab_size if fresh else None,
            seed=recipe.seed,
            **{**recipe.combine.model_dump(), "tokenizer": run.tokenizer_component},
        )
        lineages = [
            model_lineage(source, component.revision) for source, component in zip(run.sources, recipe.components)
        ]
        write_json(run.path / "lineage.json", {"models": lineages, "data": data_lineage(run.task)})
        run.save(hybrid, folder)
        components = [
            component_record(component, hybrid.component(k), lineages[k])
            for k, component in enumerate(recipe.components)
        ]
        combined = {
            "num_blocks": recipe.combine.num_blocks,
            "mixing": recipe.combine.mixing,
            "projector": recipe.combine.projector,
            "boundaries": hybrid.config.boundaries,
        }
        if hybrid.config.reembedded is not None:
            combined["tokenizer"] = recipe.combine.tokenizer
            combined["reembedded"] = hybrid.config.reembedded
        sizes = " + ".join(f"{record['parameters']:,}" for record in components)
        task = task_record(run.task, recipe.task.options, test_examples=recipe.finetune.test_examples)
        results = {"components": components, "task": task, "combine": combined}
        return Outcome(results, f"{sizes} parameters")
