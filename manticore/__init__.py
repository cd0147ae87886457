"""Manticore: turn pretrained language models of different families into one better hybrid.

``import manticore`` is cheap: it imports neither torch nor transformers. The public names below are loaded
on first use; transformers' ``Auto`` classes find hybrids and stacks as soon as they exist.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from manticore import _auto, _moved

__version__ = "0.1.0"

_PUBLIC = {
    "ManticoreConfig": "manticore.hybrid.configuration",
    "ManticoreError": "manticore.errors",
    "ManticoreForCausalLM": "manticore.hybrid.modeling",
    "ManticoreForPairClassification": "manticore.hybrid.classification",
    "ManticoreForSequenceClassification": "manticore.hybrid.classification",
    "ManticoreForTokenClassification": "manticore.hybrid.classification",
    "StackConfig": "manticore.stacks.configuration",
    "StackForAutoEncoding": "manticore.stacks.autoencoder",
    "StackForCausalLM": "manticore.stacks.modeling",
    "StackForPairClassification": "manticore.stacks.classification",
    "StackForSequenceClassification": "manticore.stacks.classification",
    "StackForTokenClassification": "manticore.stacks.classification",
    "TwinConfig": "manticore.twins.configuration",
    "TwinForCausalLM": "manticore.twins.modeling",
    "align": "manticore.training.alignment",
    "combine": "manticore.hybrid.combine",
    "compare": "manticore.experiments.compare",
    "design": "manticore.search.designs.design",
    "discretize": "manticore.hybrid.discretize",
    "distill": "manticore.training.distill",
    "evaluate": "manticore.training.evaluate",
    "export": "manticore.hybrid.export",
    "finetune": "manticore.training.finetune",
    "fits": "manticore.experiments",
    "lora_table": "manticore.hybrid.lora",
    "lora_targets": "manticore.hybrid.lora",
    "pretrain": "manticore.training.pretrain",
    "search": "manticore.search.search",
    "share": "manticore.report.sharing",
    "twin": "manticore.twins.twin",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'manticore' has no attribute {name!r}")
    home = import_module(_PUBLIC[name])
    value = getattr(home, name) if hasattr(home, name) else import_module(f"{home.__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


class _Package(ModuleType):
    """Keeps public names what they are: importing a module of ``manticore.search`` would put the package there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
_auto.announce_when_imported()
_moved.install()
