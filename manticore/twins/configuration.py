"""Configuration of a twin: its parent's configuration, and in which layers which mixer stands for its attention."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from manticore.components.loading import check_family
from manticore.errors import ManticoreError
from manticore.making import refuse_misfits
from manticore.option_types import Count, LayerIndices, TwinMixers

_SAVED = "load a config.json that save_pretrained wrote"
_SOFTMAX = ("full_attention", "sliding_attention")


class TwinConfig(PreTrainedConfig):
    """Configuration of :class:`~manticore.TwinForCausalLM`.

    What it does not name itself (vocabulary, widths, rotations, ties, special tokens) is the parent's: read from its
    configuration, and written to it.

    Raises:
        ManticoreError: no or an unknown parent, an unknown mixer, layers that the parent does not have or that have no
            softmax attention, or windows of two lengths.
    """

    model_type = "manticore_twin"

    parent: Any = None
    """The parent's configuration."""
    mixer: TwinMixers = "gated-delta-net"
    """What stands for the attention of the layers."""
    layers: LayerIndices | None = None
    """Their indices, rising."""
    rotary: bool = False
    """Whether the mixers rotate queries and keys by their positions, as the parent does."""
    window: Count | None = None
    """Tokens that sliding attention sees, the current one included; None of other mixers."""
    beside_parent: bool = True
    """It begins in the parent's features and hands its own on as the parent would."""

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)
        names = [name for name in TwinConfig.__annotations__ if name != "parent"]
        refuse_misfits("twin", TwinConfig, {name: getattr(self, name) for name in names})
        own, given = self.__dict__, self.parent
        if isinstance(given, dict):
            given = copy.deepcopy(given)
            family = given.pop("model_type", None)
            if family not in CONFIG_MAPPING:
                raise ManticoreError(
                    f"twin: its parent has unknown model_type {family!r}. Fix: a version of transformers that knows it"
                )
            given = AutoConfig.for_model(family, **given)
        elif given is None and self.layers is None:
            # what transformers makes to compare settings with
            super().__post_init__(**kwargs)
            return
        if not isinstance(given, PreTrainedConfig):
            raise ManticoreError(
                f"twin: its parent is a {type(given).__name__} (expected a configuration). Fix: {_SAVED}"
            )
        check_family(given, "twin: its parent")
        # not yet where settings are looked for: what transformers sets now is the twin's
        own["parent"] = None
        super().__post_init__(**kwargs)
        own["parent"] = given
        for name in ("attn_implementation", "experts_implementation"):
            if kwargs.get(name) is not None:
                setattr(self, f"_{name}", kwargs[name])
        self.layers = sorted(set(self.layers or ()))
        self._check_layers()

    def _check_layers(self) -> None:
        layers, depth, kinds = self.layers or [], self.num_hidden_layers, _kinds_of(self.parent)
        if not layers or layers[-1] >= depth:
            raise ManticoreError(
                f"twin: layers {layers} (expected indices below {depth}, at least one). Fix: layers the parent has"
            )
        wrong = next((i for i in layers if kinds[i] not in _SOFTMAX), None)
        if wrong is not None:
            raise ManticoreError(
                f"twin: layer {wrong} of family {self.parent.model_type!r} has no softmax attention but "
                f"{kinds[wrong].replace('_', ' ')}. Fix: leave it out of layers"
            )
        if (self.window is None) == (self.mixer == "sliding-attention"):
            raise ManticoreError(
                f"twin: window is {self.window} with mixer {self.mixer!r} (expected for sliding-attention, and only "
                "there). Fix: change one of them"
            )
        kept = {kinds[i] for i in range(depth) if i not in layers}
        theirs = getattr(self.parent, "sliding_window", None)
        if self.window is not None and "sliding_attention" in kept and theirs != self.window:
            raise ManticoreError(
                f"twin: a window of {self.window} tokens beside the parent's of {theirs} (expected one window for all "
                f"layers). Fix: window={theirs}, or all of the parent's sliding layers in layers"
            )

    def __getattr__(self, name: str) -> Any:
        parent = None if name.startswith("_") else self.__dict__.get("parent")
        if not isinstance(parent, PreTrainedConfig):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(parent, name)

    def __setattr__(self, name: str, value: Any) -> None:
        parent = self.__dict__.get("parent")
        theirs = isinstance(parent, PreTrainedConfig) and not name.startswith("_") and name not in self.__dict__
        if theirs and not hasattr(type(self), name) and hasattr(parent, name):
            setattr(parent, name, value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: where a loader file has led here, saving must not copy parts of this package beside the weights."""

    def validate_rope(self) -> None:
        """Nothing: the parent's configuration has checked its own."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without the folder of this machine that the parent was loaded from."""
        values = super().to_dict()
        if isinstance(values.get("parent"), dict):
            values["parent"].pop("_name_or_path", None)
        return values

    @property
    def sub_configs(self) -> dict[str, type]:  # type: ignore[override]
        """Tells transformers which attributes are configurations."""
        return {"parent": AutoConfig} if isinstance(self.__dict__.get("parent"), PreTrainedConfig) else {}

    @property
    def num_hidden_layers(self) -> int:
        """The parent's depth; made less, it cuts the lists that there are for each layer."""
        return int(self.parent.num_hidden_layers)

    @num_hidden_layers.setter
    def num_hidden_layers(self, depth: int) -> None:
        for name, value in list(vars(self.parent).items()):
            if isinstance(value, list) and len(value) == self.num_hidden_layers:
                setattr(self.parent, name, value[:depth])
        self.parent.num_hidden_layers = depth
        self.layers = [i for i in self.layers or () if i < depth]

    @property
    def layer_types(self) -> list[str]:
        """What transformers' cache holds for each layer."""
        kinds = _kinds_of(self.parent)
        own = "sliding_attention" if self.mixer == "sliding-attention" else "linear_attention"
        for index in self.layers or ():
            kinds[index] = own
        return kinds

    @property
    def sliding_window(self) -> int | None:
        """Tokens that sliding layers see, the current one included."""
        return self.window if self.window is not None else getattr(self.parent, "sliding_window", None)

    @sliding_window.setter
    def sliding_window(self, window: int) -> None:
        if self.window is not None:
            self.window = window
        if getattr(self.parent, "sliding_window", None) is not None:
            self.parent.sliding_window = window


def _kinds_of(parent: PreTrainedConfig) -> list[str]:
    """What transformers' cache holds for each layer of a parent."""
    kinds = getattr(parent, "layer_types", None)
    if kinds is None:
        sliding = getattr(parent, "sliding_window", None) is not None
        kinds = ["sliding_attention" if sliding else "full_attention"] * parent.num_hidden_layers
    return list(kinds)
