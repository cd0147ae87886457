"""One file per stage. What runs, plans, resumes or shows a recipe goes over ``STAGES``, in the registry's order."""

from __future__ import annotations

from manticore.registry import resolve, shipped
from manticore.schema.plugged import plugged_names
from manticore.schema.recipe import Recipe
from manticore.stages.plugged import Plugged
from manticore.stages.stage import Stage

STAGES: tuple[Stage, ...] = tuple(resolve("stage", name)() for name in shipped("stage"))


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that a recipe asks for, in order: after each one those of other packages that come after it.

    Raises:
        ManticoreError: a plug-in that is not installed, or is not a stage.
    """
    places = [stage.name for stage in STAGES]
    plugged = [Plugged(name, places) for name in plugged_names(recipe)]
    ordered = [each for stage in STAGES for each in (stage, *(other for other in plugged if other.after == stage.name))]
    return [stage for stage in ordered if stage.settings(recipe)]
