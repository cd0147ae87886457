"""Configuration of a stack: a flat list of layers, each a name with its options and what it shares, and the width.

Shapes: D width, S longest sequence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedConfig

from manticore.components.weight_files import MOST_LAYERS
from manticore.errors import ManticoreError
from manticore.making import refuse_misfits
from manticore.option_types import Count, Positive, Wanted
from manticore.registry import did_you_mean
from manticore.stacks.catalogue import measured
from manticore.stacks.layer_entry import LayerEntry, refuse_sharing
from manticore.stacks.mixer import Mixer

_DEFAULT_LAYERS = ("mh-attention", "swiglu", "mh-attention", "swiglu")
_Pair = Annotated[tuple[str, dict[str, Any]], Field(strict=False)]
_Triple = Annotated[tuple[str, dict[str, Any], dict[str, Any]], Field(strict=False)]
Layers = Annotated[
    Sequence[str | _Pair | _Triple],
    Field(min_length=1),
    Wanted(
        "a list of names, of names with their options, or of both with what is shared",
        "layers=['mamba', ['mamba', {'state_size': 16}], ['mamba', {}, {'weights_of': 0}]]",
    ),
]

Norm = Literal["rms", "layer"]
Residual = Literal["pre", "post", "output"]

OfNames = Annotated[
    Mapping[str, Mapping[str, Any]],
    Wanted("options by layer names", "for instance {'mamba': {'state_size': 16}}"),
]


class StackConfig(PreTrainedConfig):
    """Configuration of :class:`~manticore.StackForCausalLM`.

    Raises:
        ManticoreError: an unknown layer or option, heads that do not divide the width, an impossible number, layers
            that cannot share what they are to share.
    """

    model_type = "manticore_stack"

    layers: Layers | None = None
    """From the bottom to the top, each a name, a pair of a name and its options, ``["mamba", {"state_size": 16}]``, or
    these with what the layer shares with a lower one, ``["mamba", {}, {"weights_of": 0}]``: see
    :class:`~manticore.stacks.layer_entry.LayerEntry`. None is a Transformer of four."""
    layer_options: OfNames | None = None
    """Layer name → options of all layers of that name, beside their own. They are written into ``layers``, so that it
    is None from then on."""
    vocab_size: Count = 16
    """Rows of embeddings and head."""
    hidden_size: Count = 128
    """D."""
    max_position_embeddings: Count = 1280
    """S: rows of the tables that long convolutions and the auto-encoder hold; other layers have no limit."""
    norm: Norm = "rms"
    """``"rms"`` or ``"layer"``, of every layer and before the head."""
    residual: Residual = "pre"
    """Where a layer's norm is: ``"pre"`` x + layer(norm(x)), ``"post"`` norm(x + layer(x)) as the first Transformer had
    it, ``"output"`` x + norm(layer(x)) as OLMo 2 has it."""
    norm_eps: Positive = 1e-5
    head_bias: bool = True
    linear_init: Literal["uniform", "normal"] = "uniform"
    """How linear maps start: ``"uniform"`` as torch and their layers start them, ``"normal"`` all of them from
    N(0, initializer_range) with biases 0, those included to which a layer would give a start of its own."""
    pooling: Literal["last", "mean", "cls"] = "last"
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
        refuse_misfits("stack", StackConfig, {name: getattr(self, name) for name in StackConfig.__annotations__})
        of_names = self.layer_options or {}
        names = self.layer_names
        if len(names) > MOST_LAYERS:
            raise ManticoreError(f"stack: {len(names)} layers. Fix: at most {MOST_LAYERS}")
        for name in of_names:
            if name not in names:
                raise ManticoreError(
                    f"stack: options for {name!r}, which is not a layer of it{did_you_mean(name, names)}"
                )
        entries = [entry.with_options({**of_names.get(entry.name, {}), **entry.options}) for entry in self.entries]
        self.layers = [entry.written for entry in entries]
        self.layer_options = None
        mixers = self.mixers()
        refuse_sharing(entries, mixers)
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
    def entries(self) -> list[LayerEntry]:
        """The layers with their options and what they share, from the bottom to the top."""
        return [LayerEntry.read(each, index) for index, each in enumerate(self.layers or _DEFAULT_LAYERS)]

    @property
    def layer_list(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and options of the layers, from the bottom to the top."""
        return [(entry.name, entry.options) for entry in self.entries]

    @property
    def layer_names(self) -> list[str]:
        """The names of the layers, from the bottom to the top."""
        return [entry.name for entry in self.entries]

    def mixers(self) -> list[Mixer]:
        """The layers without memory for their weights, to be asked for sizes and costs.

        Raises:
            ManticoreError: an unknown layer or option, or a value that it cannot take.
        """
        found = []
        for index, entry in enumerate(self.entries):
            sizes = (self.hidden_size, self.max_position_embeddings)
            try:
                whole = entry.weights_of is not None
                found.append(measured(entry.name, *sizes, entry.options, entry.features, whole=whole))
            except ManticoreError as error:
                raise ManticoreError(f"stack: layers[{index}]: {error}") from error
        return found

    @property
    def num_hidden_layers(self) -> int:
        """How many layers there are, mixers of tokens and of channels alike."""
        return len(self.layer_names)

    @property
    def layer_types(self) -> list[str]:
        """What transformers' cache holds for each layer."""
        return [mixer.cache_slot for mixer in self.mixers()]

    @property
    def sliding_window(self) -> int | None:
        """Tokens that sliding attention sees, the current one included."""
        return next((mixer.window + 1 for mixer in self.mixers() if mixer.window is not None), None)
