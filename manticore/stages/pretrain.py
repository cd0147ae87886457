"""Pretrain small models on the spot, to be the components of a hybrid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manticore.runs.stages import Outcome
from manticore.schema.recipe import Recipe
from manticore.stages.run import Run
from manticore.stages.stage import Stage


class Pretrain(Stage):
    name = "pretrain"

    def plan_line(self, recipe: Recipe) -> str:
        return ", ".join(f"{entry.family} of {entry.layers} layers, width {entry.width}" for entry in recipe.pretrain)

    def inputs(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"pretrain": [entry.model_dump(mode="json") for entry in recipe.pretrain]}

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
