"""A supernet without data: shapes only, and one layer of each kind, however deep its components are.

Layers of a component that have the same parts with the same settings and parameters cost the same, so that one
of them stands for all. Counts of parameters are taken before that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from manticore.components.loading import check_family
from manticore.components.runner import Runner
from manticore.errors import ManticoreError, in_brief
from manticore.hybrid import feature_spaces, shared_weights
from manticore.hybrid.configuration import ManticoreConfig
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.hybrid.path import PathMixing
from manticore.hybrid.released import tie_heads
from manticore.hybrid.routed import RoutedMixing
from manticore.stacks.configuration import StackConfig
from manticore.training.budget import copy_without_data, count_parameters
from manticore.training.precision import Precision
from manticore.training.trainable import set_trainable

BUILD_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError, AttributeError, LookupError)
"""What transformers raises for sizes that a family cannot have."""


@dataclass(frozen=True)
class Shape:
    """How components are joined; the fields of a recipe's ``combine``."""

    num_blocks: int
    mixing: str
    released: bool
    projector: str
    projector_options: dict[str, Any]
    dtype: torch.dtype
    output: str = "logits"
    forgetting: float = 0.0
    boundaries: list[list[int]] | None = None


class Skeleton:
    """A supernet on the meta device, to be copied for every setting that it is measured in.

    Args:
        names: of the components, for errors.
        configs: their configurations; left as they are.
        shape: how they are joined.
        vocab_size: rows of fresh embeddings and heads; None keeps the components' own.
        mode: of tensors without data.
        tuple_sizes: what other skeletons have measured of layers, by configuration; this one adds to it.

    Raises:
        ManticoreError: a configuration that its family cannot have, or more blocks than layers.
    """

    def __init__(
        self,
        names: Sequence[str],
        configs: Sequence[PreTrainedConfig],
        shape: Shape,
        vocab_size: int | None,
        mode: FakeTensorMode,
        tuple_sizes: dict[str, list[int]] | None = None,
    ) -> None:
        measured = {} if tuple_sizes is None else tuple_sizes
        self.fresh_vocabulary = vocab_size is not None
        self.own_parameters: list[int] = []
        """Of each component as it is published."""
        self.kinds: list[list[int]] = []
        """Per component and layer the index of the layer that stands for it."""
        components: list[PreTrainedModel] = []
        layer_outputs = []
        for name, config in zip(names, configs):
            check_family(config, name)
            try:
                with torch.device("meta"), no_init_weights():
                    component = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=shape.dtype)
                component.tie_weights()
                parameters = count_parameters(component).total
                kinds = share_layers(Runner(component, []).layers)
                described = config.to_json_string(use_diff=False)
                if described not in measured:
                    measured[described] = _tuple_sizes(component, kinds, mode)
                layer_outputs.append(measured[described])
            except ManticoreError:
                raise
            except BUILD_ERRORS as error:
                raise ManticoreError(
                    f"plan: {name}: transformers can lay out no such model ({in_brief(error)}). "
                    "Fix: give the config.json that belongs to the checkpoint"
                ) from error
            self.own_parameters.append(parameters)
            self.kinds.append(kinds)
            components.append(component)
        if shape.released:
            for name, component in zip(names, components):
                tie_heads(name, component)
        configs = [component.config for component in components]
        spaces = feature_spaces.of_configs(configs)
        configurations: dict[str, Any] = {f"component_{k}": each for k, each in enumerate(configs)}
        config = ManticoreConfig(
            num_components=len(components),
            num_blocks=shape.num_blocks,
            uneven_boundaries=shape.boundaries,
            feature_spaces=spaces,
            shared_weights=None if shape.released else shared_weights.of_configs(configs, spaces),
            mixing=shape.mixing,
            output=shape.output,
            forgetting=shape.forgetting,
            released=shape.released,
            projector=shape.projector,
            projector_options=shape.projector_options or None,
            layer_outputs=layer_outputs,
            vocab_size=min(c.config.vocab_size for c in components),
            dtype=shape.dtype,
            **configurations,
        )
        with torch.device("meta"), no_init_weights():
            self.hybrid = ManticoreForCausalLM(config, components)
        self.hybrid.mixing.projectors.to(shape.dtype)
        self.hybrid.output.to(shape.dtype)
        self.hybrid.share_weights()
        self._share_layers()
        if vocab_size is not None:
            self.hybrid.with_vocabulary(vocab_size)

    def _share_layers(self) -> None:
        """Let layers that stand for others share what these share: by name they may have no counterpart."""
        for k, owner in enumerate(self.hybrid.config.owners):
            for index in set(self.kinds[k]) if owner != k else ():
                layer = self.hybrid._runner(k).layers[index]
                source = self.hybrid._runner(owner).layers[self.kinds[owner][index]]
                held = dict(source.named_parameters())
                for name in shared_weights.parents_names(layer).keys() & held.keys():
                    place, _, own = name.rpartition(".")
                    setattr(layer.get_submodule(place), own, held[name])

    def trained(
        self, trainable: str, *, lora_rank: int, mixture: bool, dtype: str | None = None, bf16: bool = False
    ) -> ManticoreForCausalLM:
        """A copy of the supernet, in training mode.

        Args:
            trainable: what trains, as in :func:`manticore.finetune`.
            lora_rank: rank of low-rank updates.
            mixture: whether the mixture weights train too, as in a search.
            dtype: what weights train in, as there; None leaves them as they came.
            bf16: forward passes compute in bfloat16 (autocast).
        """
        hybrid = copy.deepcopy(self.hybrid)
        precision = None if dtype is None else Precision(hybrid, dtype, bf16=bf16, cpu=True, stage="plan")
        set_trainable(hybrid, trainable, fresh_vocabulary=self.fresh_vocabulary, lora_rank=lora_rank)
        if precision is not None:
            precision.hold()
        for parameter in hybrid.mixing.mixture_parameters():
            parameter.requires_grad_(mixture)
        if type(hybrid.mixing) is RoutedMixing and not mixture:
            hybrid.mixing.assume_ensemble()
        return hybrid.train()


def path_mixing(hybrid: ManticoreForCausalLM, path: Sequence[int]) -> PathMixing:
    """What joins the segments of a hybrid that is discretized to `path`; its projectors train."""
    config: ManticoreConfig = copy.copy(hybrid.config)  # type: ignore[assignment]
    config.path = list(path)
    mixing = PathMixing(config)
    _as_dtype(mixing.projectors, next((p.dtype for p in hybrid.mixing.projectors.parameters()), hybrid.dtype))
    return mixing


def _as_dtype(modules: nn.Module, dtype: torch.dtype) -> None:
    # tensors without data cannot be converted in place
    for module in modules.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, dtype=dtype))


def _tuple_sizes(component: PreTrainedModel, kinds: Sequence[int], mode: FakeTensorMode) -> list[int]:
    """What the runner of the whole component would measure, from one layer of each kind."""
    with mode:
        model = copy_without_data(component)
        layers, distinct = Runner(model, []).layers, sorted(set(kinds))
        for index in reversed(range(len(layers))):
            if index not in distinct:
                del layers[index]
        model.config = copy.deepcopy(model.config)
        if isinstance(model.config, StackConfig):
            # its depth is the length of its list
            model.config.layers = [model.config.entries[index].written for index in distinct]
        else:
            model.config.num_hidden_layers = len(distinct)
        sizes = Runner(model).tuple_sizes
    return [sizes[distinct.index(kind)] for kind in kinds]


class Repeated(nn.Module):
    """Stands for a layer that costs what another one costs, and runs that one; it owns no parameters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # outside the module registry
        self.__dict__["_layer"] = layer

    def __getattr__(self, name: str) -> Any:
        if name == "_layer":
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the other layer gives."""
        return self._layer(*args, **kwargs)


def share_layers(layers: nn.ModuleList) -> list[int]:
    """Let the first layer of each kind stand for all others of it; returns the kinds, one index per layer."""
    kinds = _first_alike([_signature(layer) for layer in layers])
    for index, kind in enumerate(kinds):
        if kind != index:
            layers[index] = Repeated(layers[kind])
    return kinds


def _first_alike(signatures: list[Any]) -> list[int]:
    return [signatures.index(signature) for signature in signatures]


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Everything that can tell two layers' costs apart: parts, their settings, parameters and buffers."""
    return tuple(
        (
            name,
            type(module),
            tuple(
                (key, value)
                for key, value in sorted(vars(module).items())
                if key not in ("layer_idx", "layer_id") and isinstance(value, int | float | str | None)
            ),
            tuple((key, tuple(p.shape), p.dtype) for key, p in module._parameters.items() if p is not None),
            tuple((key, tuple(b.shape), b.dtype) for key, b in module._buffers.items() if b is not None),
        )
        for name, module in layer.named_modules()
    )
