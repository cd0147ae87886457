"""Modules that have moved: their old import paths go on working, with a notice."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

_IN_DIFFERENTIABLE = ("halves", "joint", "logits", "methods", "mixture_log", "trainer")
_IN_TRAINING = ("alignment", "calibration", "descent")
MOVED = {
    "manticore.hybrid.base": "manticore.hybrid.pretrained",
    "manticore.hybrid.building": "manticore.hybrid.modeling",
    "manticore.hybrid.cache": "manticore.hybrid.decoding",
    "manticore.hybrid.pair_classification": "manticore.hybrid.classification",
    "manticore.stacks.pair_classification": "manticore.stacks.classification",
    **{f"manticore.projectors.{name}": f"manticore.training.{name}" for name in _IN_TRAINING},
    "manticore.runs.files": "manticore.file_names",
    "manticore.runs.mad": "manticore.experiments.mad.run",
    "manticore.runs.models": "manticore.training.saved_models",
    "manticore.runs.mad_models": "manticore.experiments.mad.models",
    "manticore.plan.task_shape": "manticore.tasks.shape",
    "manticore.report.units": "manticore.quantities",
    "manticore.runs.sharing": "manticore.report.sharing",
    "manticore.runs.pipeline": "manticore.stages.pipeline",
    **{f"manticore.search.{name}": f"manticore.search.differentiable.{name}" for name in _IN_DIFFERENTIABLE},
    "manticore.schema.names": "manticore.settings",
    "manticore.schema.prerequisites": "manticore.stages.prerequisites",
    "manticore.tasks.compression": "manticore.tasks.mad.compression",
    "manticore.tasks.copying": "manticore.tasks.mad.copying",
    "manticore.tasks.digits": "manticore.tasks.lra.digits",
    "manticore.tasks.fuzzy_recall": "manticore.tasks.mad.fuzzy_recall",
    "manticore.tasks.listops": "manticore.tasks.lra.listops",
    "manticore.tasks.lra_images": "manticore.tasks.lra.images",
    "manticore.tasks.lra_tasks": "manticore.tasks.lra.tasks",
    "manticore.tasks.lra_text": "manticore.tasks.lra.text",
    "manticore.tasks.mad_grid": "manticore.tasks.mad.grid",
    "manticore.tasks.mad_protocol": "manticore.tasks.mad.protocol",
    "manticore.tasks.mad_score": "manticore.tasks.mad.score",
    "manticore.tasks.mad_tasks": "manticore.tasks.mad.tasks",
    "manticore.tasks.memorization": "manticore.tasks.mad.memorization",
    "manticore.tasks.pathfinder": "manticore.tasks.lra.pathfinder",
    "manticore.tasks.pathfinder_drawing": "manticore.tasks.lra.pathfinder_drawing",
    "manticore.tasks.recall": "manticore.tasks.mad.recall",
    "manticore.tasks.streams": "manticore.tasks.mad.streams",
    "manticore.training.compare": "manticore.experiments.compare",
    "manticore.training.comparison_runs": "manticore.experiments.comparison_runs",
    "manticore.training.contestants": "manticore.experiments.models",
    "manticore.training.intervals": "manticore.experiments.intervals",
    "manticore.training.mad_runs": "manticore.experiments.mad.training",
    "manticore.training.modes": "manticore.modes",
    "manticore.training.side_by_side": "manticore.experiments.side_by_side",
    "manticore.training.units": "manticore.runs.ledger",
}
"""Old module → new module."""


def names_of(old: str, new: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that takes public names from the module where they are now."""

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(import_module(new), name)
        warnings.warn(f"{old} has moved to {new}: import {name} from there", FutureWarning, stacklevel=2)
        return value

    return get


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a module of forwarded names for a path that has moved."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = names_of(module.__name__, MOVED[module.__name__])  # type: ignore[method-assign]


def install() -> None:
    """Let old paths be found, after everything else."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
