"""Registers the hybrid's classes with transformers' ``Auto`` classes without importing transformers first.

``import manticore`` must make ``AutoModelForCausalLM.from_pretrained("hybrid")`` work, and ``manticore --help``
(which imports this package) must answer without the seconds that torch and transformers take. So the
registration runs at once where transformers' auto module is loaded already, and otherwise right after it loads.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_TRIGGER = "transformers.models.auto.modeling_auto"


def register() -> None:
    """Register configuration and model classes; a second call changes nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from manticore.hybrid.configuration import ManticoreConfig
    from manticore.hybrid.modeling import ManticoreForCausalLM

    AutoConfig.register(ManticoreConfig.model_type, ManticoreConfig, exist_ok=True)
    AutoModelForCausalLM.register(ManticoreConfig, ManticoreForCausalLM, exist_ok=True)


class _RegisterAfterLoad(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        register()

    def __getattr__(self, name: str) -> Any:
        # inspect and linecache ask the loader for the source
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfterLoad(spec.loader)
        return spec


def register_when_imported() -> None:
    """Register now if transformers' auto classes are loaded, else as soon as they are."""
    if _TRIGGER in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Finder())
