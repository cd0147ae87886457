"""Makes hybrids, stacks and twins known to transformers' ``Auto`` classes without importing transformers first.

``import manticore`` must make ``AutoModelForCausalLM.from_pretrained("hybrid")`` work, and ``manticore --help``
(which imports this package) must answer without the seconds that torch and transformers take. So transformers is told
the names of the configuration classes only, as soon as its module of configurations is loaded. Looking one up
imports its package, which registers the classes themselves. Importing it any earlier, while transformers is
still being loaded, would fail in a circle.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_TRIGGER = "transformers.models.auto.configuration_auto"
CONFIGURATIONS = {
    "manticore": "ManticoreConfig",
    "manticore_stack": "StackConfig",
    "manticore_twin": "TwinConfig",
}
"""Model type → configuration class."""


def announce() -> None:
    """Let ``AutoConfig`` find the configuration classes on first use; a second call changes nothing."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    for model_type, name in CONFIGURATIONS.items():
        if model_type not in CONFIG_MAPPING:
            CONFIG_MAPPING_NAMES[model_type] = name
            # where transformers looks for that name; the package imports the class when it is asked for
            CONFIG_MAPPING._modules[model_type] = sys.modules["manticore"]


def register_hybrid() -> None:
    """Register configuration and model classes of hybrids; a second call changes nothing."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

    from manticore.hybrid.classification import ManticoreForSequenceClassification, ManticoreForTokenClassification
    from manticore.hybrid.configuration import ManticoreConfig
    from manticore.hybrid.modeling import ManticoreForCausalLM

    _register_configuration(ManticoreConfig)
    AutoModelForCausalLM.register(ManticoreConfig, ManticoreForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(ManticoreConfig, ManticoreForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(ManticoreConfig, ManticoreForTokenClassification, exist_ok=True)


def register_stack() -> None:
    """Register configuration and model classes of stacks; a second call changes nothing."""
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    from manticore.stacks.classification import StackForSequenceClassification, StackForTokenClassification
    from manticore.stacks.configuration import StackConfig
    from manticore.stacks.modeling import StackForCausalLM, StackModel

    _register_configuration(StackConfig)
    AutoModel.register(StackConfig, StackModel, exist_ok=True)
    AutoModelForCausalLM.register(StackConfig, StackForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(StackConfig, StackForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(StackConfig, StackForTokenClassification, exist_ok=True)


def register_twin() -> None:
    """Register configuration and model classes of twins; a second call changes nothing."""
    from transformers import AutoModelForCausalLM

    from manticore.twins.configuration import TwinConfig
    from manticore.twins.modeling import TwinForCausalLM

    _register_configuration(TwinConfig)
    AutoModelForCausalLM.register(TwinConfig, TwinForCausalLM, exist_ok=True)


def _register_configuration(kind: Any) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    CONFIG_MAPPING_NAMES.pop(kind.model_type, None)
    AutoConfig.register(kind.model_type, kind, exist_ok=True)


class _AnnounceAfterLoad(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        announce()

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
            spec.loader = _AnnounceAfterLoad(spec.loader)
        return spec


def announce_when_imported() -> None:
    """Announce now if transformers' module of configurations is loaded, else as soon as it is."""
    if _TRIGGER in sys.modules:
        announce()
    else:
        sys.meta_path.insert(0, _Finder())
