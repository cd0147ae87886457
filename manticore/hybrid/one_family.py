"""A path through components of one family, put together as one model of that family.

A layer reads the stream that the layers before have written, so where nothing translates between the components of a
path, its layers in their order are the layers of one model; the first component brings what lies before them, the last
one what lies behind.

A linear map between two layers could not be folded into their weights: the residual connection carries what it maps
past every layer behind it. So a projector has to be the identity.

Shapes: V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from manticore.components.generation_settings import SPECIAL
from manticore.components.runner import Runner
from manticore.components.surroundings import surroundings
from manticore.errors import ManticoreError, told
from manticore.hybrid.pretrained import ManticorePreTrainedModel

_FIX = "serve the hybrid through transformers, with manticore imported"

_NOT_ABOUT_LOGITS = {
    *SPECIAL,
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("initializer_range", "dequantized_from"),
    # settled by the tables that are kept
    *("vocab_size", "tie_word_embeddings"),
}
"""Settings that components of one model may have each their own of; dropout beside them."""

_FRESH_WEIGHTS = "rescale_prenorm_residual"
"""A setting by which Mamba's family rescales fresh weights, and plain transformers loaded ones at each load too."""

_PLACES = {"layer_idx", "layer_id", "layer_number", "training"}
"""What modules hold besides what they compute by."""

# lists with an entry per layer that a family derives from another setting → that setting, and how it is written
_DERIVED = {"attention_layers": ("attention_types", lambda kinds: [[[kind], 1] for kind in kinds])}


class Source(NamedTuple):
    """A layer of a path."""

    component: int
    layer: int


class Parent(NamedTuple):
    """A kept component as its family has it."""

    model: PreTrainedModel
    layers: nn.ModuleList
    prefix: str
    """Of the names of tensors in its layers."""

    @classmethod
    def of(cls, component: PreTrainedModel) -> Parent:
        """Of a component, of a twin its parent's model."""
        model = getattr(component, "parent", component)
        layers = Runner(component, []).layers
        prefix = next(name for name, module in model.named_modules() if module is layers) + "."
        return cls(model, layers, prefix)

    @property
    def family(self) -> str:
        """As transformers calls it."""
        return str(self.model.config.model_type)


def layers_of(hybrid: ManticorePreTrainedModel) -> list[Source]:
    """The layers that a path goes through, in their order."""
    edges = hybrid.config.boundaries
    path = enumerate(hybrid.config.path or ())
    return [Source(k, i) for n, k in path for i in range(edges[k][n], edges[k][n + 1])]


class OneFamily:
    """What a discretized hybrid's components are as one model.

    Args:
        hybrid: discretized.
        kind: the family's class of models, by its configuration.

    Raises:
        ManticoreError: they are none, in one line that says why.
    """

    def __init__(self, hybrid: ManticorePreTrainedModel, kind: Any) -> None:
        self.hybrid, self.order = hybrid, layers_of(hybrid)
        path = hybrid.config.path or []
        self.parents = {k: Parent.of(hybrid.component(k)) for k in dict.fromkeys(path)}
        self.first, self.last = path[0], path[-1]
        self._check_families()
        self._check_layers_are_theirs()
        self._check_settings()
        self._check_projectors()
        self.config = self._configured()
        with told("export", "the family's class cannot be built", _FIX), torch.device("meta"), no_init_weights():
            self.model: PreTrainedModel = kind.from_config(self.config)
        self.layers = Runner(self.model, []).layers
        self._check_layers_alike()

    def _named(self, k: int) -> str:
        return f"component {k} ({self.parents[k].family})"

    def _check_families(self) -> None:
        kinds = {k: type(parent.model) for k, parent in self.parents.items()}
        own = next((k for k, kind in kinds.items() if _is_of_manticore(kind)), None)
        if own is not None:
            raise ManticoreError(
                f"export: the path goes through {self._named(own)}, a model of manticore's own that no other program "
                f"knows. Fix: {_FIX}"
            )
        if len(set(kinds.values())) > 1:
            named = " and ".join(self._named(k) for k in self.parents)
            raise ManticoreError(f"export: the path goes through several families, {named}. Fix: {_FIX}")

    def _check_layers_are_theirs(self) -> None:
        for k, i in self.order:
            own = next((m for m in self.parents[k].layers[i].modules() if _is_of_manticore(type(m))), None)
            if own is not None:
                raise ManticoreError(
                    f"export: layer {i} of {self._named(k)} has a mixer of manticore's own ({type(own).__name__}), "
                    f"which the family's class has not. Fix: {_FIX}"
                )

    def _check_settings(self) -> None:
        widths = {k: parent.model.config.hidden_size for k, parent in self.parents.items()}
        if len(set(widths.values())) > 1:
            named = ", ".join(f"{self._named(k)} {width}" for k, width in widths.items())
            raise ManticoreError(f"export: components of several widths: {named}. Fix: {_FIX}")
        ours = _about_logits(self.parents[self.first].model.config)
        for k, parent in self.parents.items():
            theirs = _about_logits(parent.model.config)
            differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            if differ:
                name = differ[0]
                raise ManticoreError(
                    f"export: {name} is {ours.get(name)} in {self._named(self.first)}, {theirs.get(name)} in "
                    f"{self._named(k)}; one model has one. Fix: {_FIX}"
                )

    def _check_projectors(self) -> None:
        for name, projector in self.hybrid.mixing.projectors.items():
            if not projector.is_identity():  # type: ignore[operator]
                n, source, target = name.split("_")
                raise ManticoreError(
                    f"export: block {n} translates from component {source} to {target} by a {type(projector).__name__} "
                    "projector that is not the identity, and residual connections carry it past the layers it could be "
                    f"folded into. Fix: {_FIX}, or a path whose components share a feature space"
                )

    @property
    def _is_in_place(self) -> bool:
        """Whether each layer stands where it stood in components of one depth."""
        depths = {len(parent.layers) for parent in self.parents.values()}
        return depths == {len(self.order)} and all(i == layer for i, (_, layer) in enumerate(self.order))

    def _configured(self) -> PreTrainedConfig:
        """The first component's configuration with the path's layers, tables and ends of text."""
        base = self.parents[self.first].model.config
        values = copy.deepcopy(base.to_dict())
        values.pop("_name_or_path", None)
        if values.get(_FRESH_WEIGHTS):
            values[_FRESH_WEIGHTS] = False
        configs = {k: parent.model.config for k, parent in self.parents.items()}
        lists = {
            name: [getattr(configs[k], name)[layer] for k, layer in self.order]
            for name in per_layer(base)
            if all(name in per_layer(config) for config in configs.values())
        }
        if not self._is_in_place or any(getattr(base, name) != value for name, value in lists.items()):
            values[_depth(base)] = len(self.order)
            values.update(lists)
            for name in lists.keys() & _DERIVED.keys():
                given, written = _DERIVED[name]
                values[given] = written(values.pop(name))
        with told("export", "the path's layers make no configuration of the family", _FIX):
            config = type(base).from_dict(values)
        for name, wanted in lists.items():
            if list(getattr(config, name)) != wanted:
                raise ManticoreError(
                    f"export: {self.parents[self.first].family} derives {name} from the places of layers, and the path "
                    f"has them in others. Fix: {_FIX}"
                )
        config.dtype = self.parents[self.first].model.dtype
        config.vocab_size = self._rows()
        if not self.hybrid.keeps_lm_heads:
            for name in ("num_labels", "id2label", "label2id", "problem_type"):
                setattr(config, name, getattr(self.hybrid.config, name))
        elif not config.tie_word_embeddings:
            # apart since they come from two components; where both have the same, one is enough
            table, head = self._tables()
            ties = getattr(type(self.parents[self.first].model), "_tied_weights_keys", None)
            alike = bool(ties) and head is not None and table.shape == head.shape
            config.tie_word_embeddings = alike and self.first != self.last and torch.equal(table, head)
        return config

    def _rows(self) -> int:
        """V: of the first component's table, where the last one's head has as many."""
        rows = {self.parents[k].model.config.vocab_size for k in (self.first, self.last)}
        return int(rows.pop()) if len(rows) == 1 else int(self.hybrid.config.vocab_size)

    def _tables(self) -> tuple[Tensor, Any]:
        table: Any = self.parents[self.first].model.get_input_embeddings()
        head: Any = self.parents[self.last].model.get_output_embeddings()
        return table.weight, None if head is None else head.weight

    def _check_layers_alike(self) -> None:
        """Refuse families whose class makes something else of a layer in another place."""
        for at, (k, i) in enumerate(self.order):
            theirs, ours = self.parents[k].layers[i], self.layers[at]
            wrong = unlike(theirs, ours)
            if wrong is not None:
                raise ManticoreError(
                    f"export: layer {i} of {self._named(k)} would be layer {at}, where its family's class makes "
                    f"another layer ({wrong}). Fix: {_FIX}"
                )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the model by its name; not copied.

        Raises:
            ManticoreError: one that all layers share is not the same in all components.
        """
        prefix = next(name for name, module in self.model.named_modules() if module is self.layers) + "."
        states = {k: parent.model.state_dict() for k, parent in self.parents.items()}
        base = self.parents[self.first]
        given: dict[str, Tensor] = {}
        for at, (k, i) in enumerate(self.order):
            theirs = f"{self.parents[k].prefix}{i}."
            for name, tensor in states[k].items():
                if name.startswith(theirs):
                    given[f"{prefix}{at}.{name.removeprefix(theirs)}"] = tensor
        body = _body(base.model), _body(self.model)
        rest = [name for name in self.model.state_dict() if not name.startswith(prefix)]
        several = len(self.parents) > 1
        before, behind = surroundings(base.model) if several else (set(), set())
        heads = self._heads()
        for name in rest:
            if name in heads:
                given[name] = heads[name]
                continue
            # a class for classes may hold the body under another name
            theirs = body[0] + name.removeprefix(body[1]) if name.startswith(body[1]) else name
            module = theirs.rpartition(".")[0]
            if several and module not in before | behind:
                self._check_same(theirs, states)
            k = self.last if module in behind else self.first
            if theirs not in states[k]:
                raise ManticoreError(f"export: {self._named(k)} has no weight {theirs}. Fix: {_FIX}")
            given[name] = self._cut(name, states[k][theirs])
        return given

    def _heads(self) -> dict[str, Tensor]:
        """Of a classifier: the head of the last component, under the name that its family's class has for it."""
        if self.hybrid.keeps_lm_heads:
            return {}
        heads: Any = self.hybrid.score
        body = _body(self.model)
        names = [name for name in self.model.state_dict() if not name.startswith(body)]
        ours = {name.rpartition(".")[2]: tensor for name, tensor in heads[str(self.last)].state_dict().items()}
        shapes = {name.rpartition(".")[2]: self.model.state_dict()[name].shape for name in names}
        if len(names) != len(shapes) or shapes != {name: tensor.shape for name, tensor in ours.items()}:
            raise ManticoreError(
                f"export: {type(self.model).__name__} has another head for classes than the hybrid, "
                f"{', '.join(names)}. Fix: {_FIX}"
            )
        return {name: ours[name.rpartition(".")[2]] for name in names}

    def _check_same(self, name: str, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        held = [states[k].get(name) for k in self.parents]
        if any(each is None or each.shape != held[0].shape or not torch.equal(each, held[0]) for each in held):  # type: ignore[union-attr, arg-type]
            raise ManticoreError(
                f"export: {name} is read among the layers and is not the same in all components. Fix: {_FIX}"
            )

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        """Without rows of padding, where table and head have different numbers of them."""
        rows, wanted = self.config.vocab_size, self.model.state_dict()[name].shape
        padded = len(wanted) > 0 and wanted[0] == rows < len(tensor) and tensor.shape[1:] == wanted[1:]
        return tensor[:rows] if padded else tensor


def _is_of_manticore(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _body(model: PreTrainedModel) -> str:
    """What the names of tensors in a model's body begin with."""
    return next(name for name, module in model.named_modules() if module is model.base_model) + "."


def _depth(config: PreTrainedConfig) -> str:
    return config.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def per_layer(config: PreTrainedConfig) -> list[str]:
    """Settings with an entry per layer."""
    depth = config.num_hidden_layers
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list) and name not in SPECIAL}
    return [name for name, value in lists.items() if len(value) == depth]


def _about_logits(config: PreTrainedConfig) -> dict[str, Any]:
    derived = {given for name, (given, _) in _DERIVED.items() if name in per_layer(config)}
    apart = {*_NOT_ABOUT_LOGITS, *per_layer(config), _depth(config), *derived}
    return {name: value for name, value in config.to_dict().items() if name not in apart and "drop" not in name}


def unlike(theirs: nn.Module, ours: nn.Module) -> str | None:
    """Where a layer differs from another in its modules or in what they compute by; None where nowhere."""
    pairs = dict(theirs.named_modules()), dict(ours.named_modules())
    for name in pairs[0].keys() | pairs[1].keys():
        modules = [each.get(name) for each in pairs]
        if type(modules[0]) is not type(modules[1]):
            return " for ".join(type(module).__name__ for module in reversed(modules))
        if isinstance(modules[0], nn.Dropout):
            continue
        held = [dict(_plain(module)) for module in modules]
        for attribute in held[0].keys() & held[1].keys():
            if held[0][attribute] != held[1][attribute]:
                return f"{attribute} {held[1][attribute]} for {held[0][attribute]}"
    return None


def _plain(module: nn.Module | None) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        plain = isinstance(value, str | int | float | tuple | None) and not name.startswith("_")
        if plain and name not in _PLACES and "drop" not in name:
            yield name, value
