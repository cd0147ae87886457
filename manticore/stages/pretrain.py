"""Pretrain small models on the spot, to be the components of a hybrid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.commands import evaluate_command, text_words
from manticore.stages.run import Run
from manticore.stages.stage import Stage, StagePlan

if TYPE_CHECKING:
    from manticore.plan.costing import Costing


class Pretrain(Stage):
    name = "pretrain"

    def plan_line(self, recipe: Recipe) -> str:
        return ", ".join(f"{entry.family} of {entry.layers} layers, width {entry.width}" for entry in recipe.pretrain)

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"pretrain": [entry.model_dump(mode="json") for entry in recipe.pretrain]}

    def read(self, run: Run) -> Mapping[str, str | None]:
        # what it reads is in the name of what it keeps in the cache
        return {}

    def cost(self, costing: Costing) -> Iterator[StagePlan]:
        recipe = costing.recipe
        for entry in recipe.pretrain:
            used = next((k for k, c in enumerate(recipe.components) if c.source == entry.name), None)
            if used is None:
                continue
            skeleton = costing.alone(replace(costing.sources[used], name=entry.name))
            _, case = costing.without_mixture(skeleton, "all", [0], batch_size=entry.batch_size, length=entry.length)
            yield costing.judged(
                self.name, f"{entry.name}, unless cached", case.peak(), "a smaller batch_size",
                trained=case.held.trained, step_flops=case.flops, steps=entry.steps, flops=case.flops * entry.steps,
                subject=f"pretrain: {entry.name}",
            )  # fmt: skip

    def work(self, run: Run, folder: Path) -> Outcome:
        from manticore.training.pretrain import read_record

        found = []
        for entry in run.recipe.pretrain:
            record = read_record(run.pretrained[entry.name])
            loss = record["heldout"].get("loss")
            found.append({"name": entry.name, "tokens": record["tokens"], "heldout_loss": loss})
        said = ", ".join(
            f"{one['name']} {'first weights' if one['heldout_loss'] is None else format(one['heldout_loss'], '.3f')}"
            for one in found
        )
        cache = Path(next(iter(run.pretrained.values()))).parent
        return Outcome({"pretrain": {one["name"]: one for one in found}}, f"held-out loss: {said}; in {cache}")

    def next_command(self, out: str, settings: Mapping[str, Any]) -> str:
        given = {"source": settings["text"], "text_column": settings["text_column"], "length": settings["length"]}
        return evaluate_command(out, text_words(given))
