"""Which maps an adapter must not touch: those read past their module, and those that share their weight.

An adapter (LoRA and its kin) puts a module in a map's place that computes the map plus an update. Two things make that
go wrong without a word:

* code that takes the map's weight as a tensor, as Mamba's scan does with the time step's map and fused kernels do with
  more, never sees the update, which merging then adds all the same;
* a weight that other modules use too gets, on merging, an update that only one of them had.

The first is found in the source of the classes that own the maps, so it holds for branches that this machine does not
take (fused kernels need a GPU); the second by comparing parameters.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from manticore.errors import ManticoreError

_ALL = "*"
_NOT_THE_VALUES = ("dtype", "device", "shape", "ndim")
_INITIALISERS = ("init", "reset")
# read only in a branch that reproduces the rounding of the original training, chosen by this flag of the module
_BRANCHES = {"BloomAttention": "slow_but_exact", "BloomMLP": "slow_but_exact"}
_COMMON = {*PreTrainedModel.__mro__, *GenerationMixin.__mro__}
_NAMED = 3


def unsafe_maps(model: nn.Module) -> dict[str, str]:
    """Full name → reason, of every module that an adapter must not be put on.

    Args:
        model: any model, with adapters or without.
    """
    return {**_read_raw(model), **_shared(model)}


def refuse_unsafe_adapters(model: nn.Module) -> None:
    """Refuse adapters that would be passed by, or that would change other maps on merging.

    Args:
        model: any model with adapters of peft.

    Raises:
        ManticoreError: naming the maps and the reason.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    refused = {name: reason for name, reason in unsafe_maps(model).items() if name in adapted}
    if not refused:
        return
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in refused.items():
        by_reason[reason].append(name)
    told = "; ".join(f"{_some(names)}: {reason}" for reason, names in list(by_reason.items())[:_NAMED])
    more = f"; {len(by_reason) - _NAMED} more reasons" if len(by_reason) > _NAMED else ""
    raise ManticoreError(
        f"adapter: {len(refused)} of {len(adapted)} adapted modules cannot carry an update ({told}{more}). "
        "Fix: target_modules=manticore.lora_targets(model)"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def remove_adapters(model: nn.Module, *, merge: bool) -> None:
    """Take every adapter off ``model``, in place.

    Args:
        model: any model with adapters of peft.
        merge: whether their updates are added to the maps they stand beside.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        parent, _, attribute = name.rpartition(".")
        if isinstance(module, BaseTunerLayer):
            if merge:
                module.merge(safe_merge=True)
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            kept = module.modules_to_save[module.active_adapters[0]] if merge else module.original_module
            setattr(model.get_submodule(parent), attribute, kept)
    for note in ("peft_config", "_hf_peft_config_loaded", "_checked_adapters"):
        vars(model).pop(note, None)


class AdapterGuard(PreTrainedModel):
    """A model that refuses unsafe adapters, whichever way peft put them there.

    The first adapter is refused while it is being made: peft notes its configurations on the model as the last step,
    and everything it changed is taken back then (``requires_grad`` stays off). Later adapters are only entered
    into those notes, so the forward pass looks at them once per adapter.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "peft_config":
            try:
                self.check_adapters()
            except ManticoreError:
                remove_adapters(self, merge=False)
                raise

    def check_adapters(self) -> None:
        """Refuse unsafe adapters; costs nothing where none came since the last call.

        Raises:
            ManticoreError: an adapter is on a map that cannot carry it.
        """
        configurations = getattr(self, "peft_config", None)
        if not configurations:
            return
        present = tuple((name, id(configuration)) for name, configuration in configurations.items())
        if getattr(self, "_checked_adapters", None) != present:
            refuse_unsafe_adapters(self)
            self._checked_adapters = present


def _read_raw(model: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, owner in model.named_modules():
        kind: Any = type(owner)
        paths = _raw_reads(kind)
        if not paths or not getattr(owner, _BRANCHES.get(kind.__name__, ""), True):
            continue
        # a mixer that runs this package's scan is known to its reader under its original class
        known_as = getattr(owner, "original", kind).__name__
        for child, _ in owner.named_modules():
            if child in paths:
                found[f"{name}.{child}".lstrip(".")] = f"{known_as} reads its weight as a tensor"
            elif child and _ALL in paths:
                found[f"{name}.{child}".lstrip(".")] = f"{known_as} has no source that could be checked"
    return found


@cache
def _raw_reads(kind: Any) -> frozenset[str]:
    """Paths, seen from a module of this class, of the modules whose ``weight`` its own methods read; ``*`` for all."""
    paths: set[str] = set()
    for function in _methods(kind):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, SyntaxError):
            return frozenset({_ALL})
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        described = {id(node.value) for node in attributes if node.attr in _NOT_THE_VALUES}
        for node in attributes:
            if node.attr == "weight" and id(node) not in described:
                paths.add(_path_from_self(node.value))
    return frozenset(paths - {""})


def _methods(kind: Any) -> Iterator[FunctionType]:
    """Methods that may run in a forward pass and are not torch's or common to all models."""
    for base in kind.__mro__:
        if base in _COMMON or base.__module__.split(".")[0] in ("torch", "peft", "builtins"):
            continue
        for name, member in vars(base).items():
            function = inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else None
            if isinstance(function, FunctionType) and not name.lstrip("_").startswith(_INITIALISERS):
                yield function


def _path_from_self(node: ast.AST) -> str:
    """``a.b`` for the expression ``self.a.b``; empty for any other."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == "self" else ""


def _shared(model: nn.Module) -> dict[str, str]:
    owners: defaultdict[int, dict[int, str]] = defaultdict(dict)
    # one module in several places carries one update for all of them, which is no fault: it counts once
    for owner, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)][id(module)] = owner.removesuffix(".base_layer")
    return {
        name: f"its weight is also that of {next(other for other in names if other != name)}"
        for names in (list(found.values()) for found in owners.values())
        if len(names) > 1
        for name in names
    }
