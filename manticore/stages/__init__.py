"""One file per stage. What runs, plans, resumes or shows a recipe goes over ``STAGES``, in this order."""

from __future__ import annotations

from manticore.schema.recipe import Recipe
from manticore.stages.align import Align
from manticore.stages.combine import Combine
from manticore.stages.compare import Compare
from manticore.stages.discretize import Discretize
from manticore.stages.finetune import Finetune
from manticore.stages.pretrain import Pretrain
from manticore.stages.search import Search
from manticore.stages.stage import Stage

STAGES: tuple[Stage, ...] = (Pretrain(), Combine(), Align(), Search(), Discretize(), Finetune(), Compare())


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that a recipe asks for, in order."""
    return [stage for stage in STAGES if stage.settings(recipe)]
