"""Where low-rank updates (LoRA, Hu et al. 2021) may go in a model, and a table of where they are.

Chosen are the linear maps inside decoder layers, whatever the family calls them, except those that an adapter must
not touch (:mod:`manticore.components.adapters`). Embeddings, heads, norms, convolutions and projectors are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from manticore.components.adapters import unsafe_maps
from manticore.components.runner import Runner
from manticore.errors import ManticoreError


@dataclass(frozen=True)
class LoraRow:
    """One component's layers in one block."""

    block: int
    component: int
    family: str
    matched: dict[str, int]
    """``"name out×in"`` → how many of them carry an update."""
    refused: dict[str, str]
    """Map name → why no map of that name may carry one."""

    @property
    def count(self) -> int:
        """How many maps carry an update."""
        return sum(self.matched.values())


@dataclass(frozen=True)
class LoraTable:
    """Which maps carry low-rank updates, per block and component; prints as a table."""

    rows: list[LoraRow]

    def __rich__(self) -> Table:
        table = Table()
        for heading in ("block", "component", "maps", "matched (out×in)", "refused"):
            table.add_column(heading, justify="right" if heading in ("block", "maps") else "left", overflow="fold")
        for row in self.rows:
            table.add_row(
                str(row.block),
                f"{row.component} {row.family}",
                str(row.count),
                "\n".join(f"{name} · {count}" for name, count in row.matched.items()),
                "\n".join(f"{name}: {reason}" for name, reason in row.refused.items()),
            )
        return table

    def __str__(self) -> str:
        console = Console(width=120, color_system=None, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()


def lora_targets(model: PreTrainedModel) -> list[str]:
    """Full names of the maps that may carry a low-rank update: what ``peft.LoraConfig(target_modules=…)`` takes.

    Args:
        model: a hybrid, discretized or not, a stack, or any causal LM of transformers; without adapters.

    Raises:
        ManticoreError: there is no such map, or the model has adapters.
    """
    if getattr(model, "peft_config", None):
        raise ManticoreError(
            f"lora_targets: this {type(model).__name__} has adapters already. Fix: give the model before get_peft_model"
        )
    refused = unsafe_maps(model)
    inside = {
        id(map_)
        for runner in kept_runners(model)
        for layer in runner.layers
        for map_ in layer.modules()
        if isinstance(map_, nn.Linear | Conv1D)
    }
    targets = [name for name, module in model.named_modules() if id(module) in inside and name not in refused]
    if not targets:
        raise ManticoreError(
            f"lora_targets: the decoder layers of this {type(model).__name__} have no linear map that could carry an "
            "update. Fix: train all of it, or its projectors"
        )
    return targets


def lora_table(model: nn.Module, targets: Sequence[str] | str | None = None) -> LoraTable:
    """Which maps carry updates, per block and component, and which are refused and why.

    Args:
        model: as for :func:`lora_targets`, or what ``peft.get_peft_model`` made of it.
        targets: as ``target_modules`` of peft; None takes the adapters that are there, else :func:`lora_targets`.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists

    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    assert isinstance(model, PreTrainedModel)
    modules = dict(model.named_modules())
    if targets is None and not getattr(model, "peft_config", None):
        targets = lora_targets(model)
    if targets is None:
        chosen = {id(module) for module in modules.values() if isinstance(module, BaseTunerLayer)}
    else:
        config = LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets))
        chosen = {id(module) for name, module in modules.items() if check_target_module_exists(config, name)}
    refused = {id(modules[name]): reason for name, reason in unsafe_maps(model).items() if name in modules}
    return LoraTable(
        [_row(n, k, runner, layers, chosen, refused) for n, k, runner, layers in _segments(model) if len(layers)]
    )


def kept_runners(model: PreTrainedModel) -> list[Runner]:
    """The components that a hybrid has kept; of another model, the model itself."""
    runners = getattr(model, "runners", None)
    return [Runner(model)] if runners is None else [runner for runner in runners if runner is not None]


def _segments(model: PreTrainedModel) -> Iterator[tuple[int, int, Runner, list[nn.Module]]]:
    """Block, component, its runner and the layers it has in that block."""
    runners = getattr(model, "runners", None)
    if runners is None:
        runner = Runner(model)
        yield 0, 0, runner, list(runner.layers)
        return
    config = model.config
    for n in range(config.num_blocks):
        for k, runner in enumerate(runners):
            if runner is not None and (config.path is None or config.path[n] == k):
                edges = config.boundaries[k]
                yield n, k, runner, list(runner.layers[edges[n] : edges[n + 1]])


def _row(n: int, k: int, runner: Runner, layers: list[nn.Module], chosen: set[int], refused: dict[int, str]) -> LoraRow:
    matched: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for layer in layers:
        for name, module in layer.named_modules():
            short = name.rpartition(".")[2]
            if id(module) in refused:
                reasons.setdefault(short, refused[id(module)])
            elif id(module) in chosen:
                base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
                matched[f"{short} {_shape(base)}"] += 1
    return LoraRow(n, k, runner.model.config.model_type, dict(matched), reasons)


def _shape(module: nn.Module) -> str:
    """``out×in``; a :class:`Conv1D` keeps its weight the other way round."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return type(module).__name__
    sizes = reversed(weight.shape) if isinstance(module, Conv1D) else weight.shape
    return "×".join(map(str, sizes))
