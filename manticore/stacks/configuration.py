"""Configuration of a stack: a flat list of layer names, the width, and options by layer name.

Letters: D width, S longest sequence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from manticore.components.weight_files import MOST_LAYERS
from manticore.errors import ManticoreError
from manticore.registry import did_you_mean
from manticore.stacks.catalogue import measured
from manticore.stacks.mixer import Mixer

_DEFAULT_LAYERS = ("mh-attention", "swiglu", "mh-attention", "swiglu")
_CHOICES = {"norm": ("rms", "layer"), "linear_init": ("uniform", "normal"), "pooling": ("last", "mean", "cls")}


class StackConfig(PreTrainedConfig):
    """Configuration of :class:`~manticore.StackForCausalLM`.

    Raises:
        ManticoreError: an unknown layer or option, heads that do not divide the width, an impossible number.
    """

    model_type = "manticore_stack"

    layers: list[str] | None = None
    """Names of the layers from the bottom to the top; None is a Transformer of four."""
    layer_options: dict[str, dict[str, Any]] | None = None
    """Layer name → its options."""
    vocab_size: int = 16
    """Rows of embeddings and head."""
    hidden_size: int = 128
    """D."""
    max_position_embeddings: int = 1280
    """S: rows of the tables that long convolutions and the auto-encoder hold; other layers have no limit."""
    norm: str = "rms"
    """``"rms"`` or ``"layer"``, before every layer and the head."""
    norm_eps: float = 1e-5
    head_bias: bool = True
    linear_init: str = "uniform"
    """How linear maps start: ``"uniform"`` as torch and their layers start them, ``"normal"`` all of them from
    N(0, initializer_range) with biases 0, those included to which a layer would give a start of its own."""
    pooling: str = "last"
    """What the auto-encoder keeps of a sequence: ``"last"``, ``"mean"`` or ``"cls"`` (a learned token at the end)."""
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: where a loader file has led here, saving must not copy parts of this package beside the weights."""

    def __post_init__(self, **kwargs: Any) -> None:
        # the class is this one already; a saved copy must not point to a file that is not beside it
        kwargs.pop("auto_map", None)
        self._refuse_mistyped(kwargs)
        if self.layers is None:
            self.layers = list(_DEFAULT_LAYERS)
        if isinstance(self.layers, str) or not self.layers or not all(isinstance(name, str) for name in self.layers):
            raise ManticoreError(f"stack: layers is {self.layers!r} (expected a list of names). Fix: layers=['mamba']")
        if len(self.layers) > MOST_LAYERS:
            raise ManticoreError(f"stack: {len(self.layers)} layers. Fix: at most {MOST_LAYERS}")
        for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ManticoreError(f"stack: {name} is {value!r} (expected a whole number). Fix: give 1 or more")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ManticoreError(f"stack: {name} is {value!r}{did_you_mean(str(value), list(choices))}")
        self.layers = list(self.layers)
        self.layer_options = {name: dict(options) for name, options in (self.layer_options or {}).items()}
        mixers = self.mixers()
        for name in self.layer_options:
            if name not in self.layers:
                raise ManticoreError(
                    f"stack: options for {name!r}, which is no layer of it{did_you_mean(name, self.layers)}"
                )
        windows = sorted({mixer.window for mixer in mixers if mixer.window is not None})
        if len(windows) > 1:
            raise ManticoreError(
                f"stack: windows of {windows[0]} and {windows[-1]} tokens in one stack (expected one window for all "
                "sliding layers). Fix: give them the same window"
            )
        super().__post_init__(**kwargs)

    def _refuse_mistyped(self, names: Iterable[str]) -> None:
        """Refuse what transformers would keep unread although it nearly is a setting of a stack."""
        known = [field.name for field in fields(self)]
        for name in names:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if near and not hasattr(PreTrainedConfig, name):
                raise ManticoreError(f"stack: unknown setting {name!r}. Did you mean {near[0]!r}?")

    @property
    def layer_names(self) -> list[str]:
        """The layers, from the bottom to the top."""
        return list(self.layers or _DEFAULT_LAYERS)

    def options_of(self, name: str) -> dict[str, Any]:
        """Options of the layers of that name."""
        return (self.layer_options or {}).get(name, {})

    def mixers(self) -> list[Mixer]:
        """The layers without memory for their weights, to be asked for sizes and costs."""
        return [
            measured(name, self.hidden_size, self.max_position_embeddings, self.options_of(name))
            for name in self.layer_names
        ]

    @property
    def num_hidden_layers(self) -> int:
        """How many layers there are, mixers of tokens and of channels alike."""
        return len(self.layer_names)

    @property
    def layer_types(self) -> list[str]:
        """What transformers' cache holds for each layer."""
        return [mixer.cache_type for mixer in self.mixers()]

    @property
    def sliding_window(self) -> int | None:
        """Tokens that sliding attention sees, the current one included."""
        return next((mixer.window + 1 for mixer in self.mixers() if mixer.window is not None), None)
