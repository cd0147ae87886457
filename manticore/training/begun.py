"""A fine-tuning that a search has begun, and that ``finetune`` goes on with."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.processes import is_first, process_count, wait_for_all
from manticore.runs.ledger import CONDITIONS, INPUTS, read_record
from manticore.settings import Finetune
from manticore.training.checkpoints import RECORD, checkpoints, noted_inputs
from manticore.writing import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

BEGUN = "begun"
"""The folder of its checkpoints, beside the model."""
UNIT = "unit.json"
"""Beside the checkpoints: the training FLOPs that the search has planned for a whole fine-tuning."""


@dataclass(frozen=True)
class Begun:
    """A model that was trained in a search."""

    model: PreTrainedModel
    """With the weights that it had when the search ended."""
    checkpoints: Path
    """The folder of the training's checkpoints and of its key."""

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of what the training began with."""
        return noted_inputs(self.checkpoints) or {}

    def completed(self, settings: Finetune) -> Finetune:
        """Settings whose length and warm-up, where they are left open, are those that the search has planned."""
        noted = read_record(self.checkpoints / RECORD, "search again") or {}
        found: dict[str, Any] = {}
        if settings.warmup_steps is None:
            found["warmup_steps"] = noted.get("warmup_steps")
        if settings.steps is None and settings.budget_flops is None:
            found["budget_flops"] = int(json.loads((self.checkpoints / UNIT).read_text(encoding="utf-8")))
        return settings.model_copy(update=found)

    def adopted(self, key: Mapping[str, Any], inputs: Mapping[str, str], folder: Path) -> dict[str, str] | None:
        """Put the checkpoints where a training looks for its own, if it goes on with this one; else say why not.

        Args:
            key: of the training that is asked for.
            inputs: digests of what it reads.
            folder: where it looks.

        Returns:
            Digests of what this training began with; None where another one starts.
        """
        theirs = read_record(self.checkpoints / RECORD, "search again") or {}
        began, _ = theirs.pop(INPUTS, {}), theirs.pop(CONDITIONS, {})
        asked = {"processes": process_count(), **key}
        differing = sorted(name for name in {*theirs, *asked} - {"steps"} if theirs.get(name) != asked.get(name))
        said = [f"{name}={theirs.get(name)!r}, not {asked.get(name)!r}" for name in differing]
        if theirs.get("steps", 0) > asked["steps"]:
            said.append(f"{theirs['steps']} steps, not {asked['steps']}")
        if began.get("data") != inputs.get("data"):
            said.append("other data")
        if said:
            logger.warning("finetune: starts anew from the weights that the search left: it trained with %s", said[0])
            return None
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)
            with new_folder(folder) as made:
                shutil.copytree(self.checkpoints, made, dirs_exist_ok=True)
        wait_for_all()
        return dict(began)


def begun_beside(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel | Begun:
    """The model of a folder, with the training that a search has begun, where there is one."""
    place = Path(folder) / BEGUN
    return Begun(model, place) if checkpoints(place) else model
