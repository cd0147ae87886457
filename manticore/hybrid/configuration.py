"""Configuration of a hybrid: its components' own configurations, and how they are cut and mixed.

Shapes: K components, N blocks.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from manticore.components.extra_outputs import ask_for_no_more
from manticore.components.generation_settings import ends_of
from manticore.components.loading import check_family
from manticore.components.positions import context_length
from manticore.components.state_cache import EmptyLayer
from manticore.errors import ManticoreError


def cut(num_layers: int, num_blocks: int) -> list[int]:
    """Where the segments of a component start and end: N + 1 layer indices, as even as the depth allows.

    Raises:
        ManticoreError: more blocks than layers.
    """
    if num_blocks > num_layers:
        raise ManticoreError(
            f"combine: {num_blocks} blocks, but a component has only {num_layers} layers. "
            f"Fix: num_blocks <= {num_layers}"
        )
    return [(2 * num_layers * n + num_blocks) // (2 * num_blocks) for n in range(num_blocks + 1)]


_LONGEST_TUPLE = 100
"""More values than a decoder layer of any family returns."""


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class ManticoreConfig(PreTrainedConfig):
    """Configuration of :class:`~manticore.ManticoreForCausalLM`.

    The configurations of the components are the attributes ``component_0`` … ``component_{K-1}``, since
    transformers serialises, and recurses into, sub-configurations that are direct attributes only.
    """

    model_type = "manticore"

    num_components: int = 0
    """K."""
    num_blocks: int = 1
    """N: how many segments every component is cut into."""
    mixing: str = "translated"
    """Registered name of how components are mixed."""
    released: bool = False
    """Gated mixing only: the function of the published method's released code, whole (fresh tied tables, positions and
    norms inside the branches, block 0's weights at the heads)."""
    projector: str = "linear"
    """Registered name of the kind of projector."""
    projector_options: dict[str, Any] | None = None
    """Arguments of the projectors, such as ``rank``."""
    layer_outputs: list[list[int]] | None = None
    """Per component and layer: 0 where the layer returns a tensor, else the length of its tuple."""
    one_token_at_a_time: list[bool] | None = None
    """Per component: whether its family can continue a cached prompt by one token only."""
    path: list[int] | None = None
    """The component that each block keeps, once the hybrid is discretized."""
    searched_weights: list[list[float]] | None = None
    """``[N, K]`` mixture weights the hybrid was discretized from."""
    parents: list[dict[str, Any]] | None = None
    """Per component the ``source`` it came from, its ``commit`` on the hub, the ``license`` that its card states."""
    generation: list[dict[str, Any]] | None = None
    """Per component the settings that its own ``generate`` goes by; None where a task brought its vocabulary."""
    generation_component: int = 0
    """The component whose settings hold, apart from ends of text: the one whose tokenizer is the hybrid's."""
    vocab_size: int = 0
    """Rows of the logits."""
    tokenizer_component: int | None = None
    """The component whose tokenizer was kept, where components with others were re-embedded for it."""
    reembedded: list[dict[str, Any] | None] | None = None
    """Per component how many of the kept tokenizer's tokens were matched, and how; None where it had that tokenizer."""
    hidden_size: int = 0
    """The largest width among the kept components."""
    num_hidden_layers: int = 0
    """Decoder layers of all components together."""
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not _is_count(self.num_components, least=0):
            raise ManticoreError(
                f"config: num_components is {self.num_components!r} (expected a whole number). "
                "Fix: load a config.json that save_pretrained wrote"
            )
        missing = next((k for k in range(self.num_components) if kwargs.get(f"component_{k}") is None), None)
        if missing is not None:
            raise ManticoreError(
                f"config: component_{missing} is missing (num_components is {self.num_components}). "
                "Fix: load a config.json that save_pretrained wrote"
            )
        values = [kwargs.pop(f"component_{k}") for k in range(self.num_components)]
        # follows from the components that are kept
        kwargs.pop("max_position_embeddings", None)
        # the class is this one already; a saved copy must not point to a file that is not beside it
        kwargs.pop("auto_map", None)
        asked = {name: kwargs.get(name) for name in ("attn_implementation", "experts_implementation")}
        super().__post_init__(**kwargs)
        for k, value in enumerate(values):
            if isinstance(value, dict):
                value = copy.deepcopy(value)
                family = value.pop("model_type", None)
                if family == self.model_type:
                    raise ManticoreError(
                        f"config: component_{k} is a hybrid itself. Fix: combine the components that it is made of"
                    )
                if family not in CONFIG_MAPPING:
                    raise ManticoreError(
                        f"config: component_{k} has unknown model_type {family!r}. "
                        "Fix: a version of transformers that knows it"
                    )
                value = AutoConfig.for_model(family, **value)
            if not isinstance(value, PreTrainedConfig):
                raise ManticoreError(
                    f"config: component_{k} is a {type(value).__name__} (expected a configuration). "
                    "Fix: load a config.json that save_pretrained wrote"
                )
            check_family(value, f"config: component_{k}")
            ask_for_no_more(value)
            setattr(self, f"component_{k}", value)
        for name, wanted in asked.items():
            # once more, now that there are components that it can reach
            if wanted is not None:
                setattr(self, f"_{name}", wanted)
        if self.path is not None and (
            not isinstance(self.path, list | tuple)
            or len(self.path) != self.num_blocks
            or not all(_is_count(m, least=0) and m < self.num_components for m in self.path)
        ):
            raise ManticoreError(
                f"config: path {self.path} (expected {self.num_blocks} indices below {self.num_components}). "
                "Fix: name one component per block"
            )
        if not isinstance(self.released, bool) or (self.released and self.mixing != "gated"):
            raise ManticoreError(
                f"config: released is {self.released!r} with mixing {self.mixing!r} (expected true with gated only). "
                "Fix: mixing gated, or released false"
            )
        if self.num_components:
            self._check_per_component()
            kept = sorted(set(self.path)) if self.path is not None else range(self.num_components)
            self.hidden_size = max(self.components[k].hidden_size for k in kept)
            # absent where no component names a length, as in a Mamba's configuration: tools ask whether it is there
            lengths = [length for k in kept if (length := context_length(self.components[k])) is not None]
            if lengths:
                self.max_position_embeddings = min(lengths)
            self.num_hidden_layers = sum(config.num_hidden_layers for config in self.components)
            self.boundaries  # noqa: B018  (refuses more blocks than layers)

    def _check_per_component(self) -> None:
        """Refuse counts below what a hybrid has, and lists that do not belong to these components."""
        for name, value, least in (("num_blocks", self.num_blocks, 1), ("vocab_size", self.vocab_size, 0)):
            if not _is_count(value, least=least):
                raise ManticoreError(
                    f"config: {name} is {value!r} (expected a whole number). Fix: give {least} or more"
                )
        kept = self.components if self.path is None else [self.components[k] for k in set(self.path)]
        rows = min(config.vocab_size for config in kept)
        if self.vocab_size > rows:
            raise ManticoreError(
                f"config: vocab_size is {self.vocab_size}, a component has {rows} tokens. "
                "Fix: load a config.json that save_pretrained wrote"
            )
        depths = [config.num_hidden_layers for config in self.components]
        outputs, single = self.layer_outputs, self.one_token_at_a_time
        if outputs is not None and not (
            isinstance(outputs, list | tuple)
            and all(isinstance(sizes, list | tuple) for sizes in outputs)
            and [len(sizes) for sizes in outputs] == depths
            and all(_is_count(size, least=0) and size < _LONGEST_TUPLE for sizes in outputs for size in sizes)
        ):
            raise ManticoreError(
                f"config: layer_outputs does not name one count for each of the components' {depths} layers. "
                "Fix: load a config.json that save_pretrained wrote"
            )
        if single is not None and not (
            isinstance(single, list | tuple)
            and len(single) == self.num_components
            and all(isinstance(each, bool) for each in single)
        ):
            raise ManticoreError(
                f"config: one_token_at_a_time is {single!r} (expected true or false for each of "
                f"{self.num_components} components). Fix: load a config.json that save_pretrained wrote"
            )
        self._check_generation()
        parents = self.parents
        if parents is not None and not (
            isinstance(parents, list)
            and len(parents) == self.num_components
            and all(isinstance(parent, dict) for parent in parents)
            and all(isinstance(value, str | None) for parent in parents for value in parent.values())
        ):
            raise ManticoreError(
                f"config: parents is {str(parents)[:80]} (expected names for {self.num_components} components). "
                "Fix: load a config.json that save_pretrained wrote"
            )

    def _check_generation(self) -> None:
        """Refuse settings that no ``generate`` could go by, or that belong to other components."""
        given, owner = self.generation, self.generation_component
        fits = given is None or (
            isinstance(given, list)
            and len(given) == self.num_components
            and all(isinstance(each, dict) for each in given)
            and all(_is_count(end, least=0) for each in given for end in ends_of(each.get("eos_token_id")))
        )
        if not fits or not _is_count(owner, least=0) or owner >= self.num_components:
            raise ManticoreError(
                f"config: generation is {str(given)[:80]}, generation_component {owner!r} (expected settings for each "
                f"of {self.num_components} components, and one of these). "
                "Fix: load a config.json that save_pretrained wrote"
            )

    def per_component(self, wanted: str | dict[str, Any] | None, what: str) -> dict[str, Any] | None:
        """An implementation of attention or experts as transformers takes it: ``""`` for the hybrid, then by component.

        One for all reaches the components that have attention layers; a Mamba would refuse it. ``""`` alone is one for
        all, since a hybrid has no layers beside theirs.

        Raises:
            ManticoreError: a component that there is not.
        """
        if isinstance(wanted, dict) and wanted.keys() == {""}:
            wanted = wanted[""]
        if wanted is None or (isinstance(wanted, dict) and wanted.keys() <= {"", *self.sub_configs}):
            return wanted
        if isinstance(wanted, dict):
            raise ManticoreError(
                f"{what}: {sorted(wanted)} (expected names among {list(self.sub_configs)}). Fix: name components so"
            )
        reached = [name for name in self.sub_configs if what != "attn_implementation" or self._attends(name)]
        return {"": wanted, **dict.fromkeys(reached, wanted)}

    def _attends(self, name: str) -> bool:
        # not there yet while a configuration is being read
        component = getattr(self, name, None)
        if component is None:
            return False
        return any(
            isinstance(layer, CacheLayerMixin) and not isinstance(layer, EmptyLayer)
            for layer in DynamicCache(config=component).layers
        )

    @property
    def _attn_implementation(self) -> str | None:
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict[str, Any] | None) -> None:
        of_all: Any = PreTrainedConfig._attn_implementation
        of_all.fset(self, self.per_component(value, "attn_implementation"))

    @property
    def _experts_implementation(self) -> str | None:
        return self._experts_implementation_internal

    @_experts_implementation.setter
    def _experts_implementation(self, value: str | dict[str, Any] | None) -> None:
        of_all: Any = PreTrainedConfig._experts_implementation
        of_all.fset(self, self.per_component(value, "experts_implementation"))

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: where a loader file has led here, saving must not copy parts of this package beside the weights."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without the folders of this machine that the components were loaded from."""
        values = super().to_dict()
        for k in range(self.num_components):
            values[f"component_{k}"].pop("_name_or_path", None)
        return values

    @property
    def components(self) -> list[PreTrainedConfig]:
        """The components' configurations, K of them."""
        return [getattr(self, f"component_{k}") for k in range(self.num_components)]

    @property
    def head_block(self) -> int:
        """The block whose weights mix the heads: the last one, in the released gated function the first."""
        return 0 if self.released else self.num_blocks - 1

    @property
    def boundaries(self) -> list[list[int]]:
        """Per component the N + 1 layer indices where its segments start and end."""
        return [cut(config.num_hidden_layers, self.num_blocks) for config in self.components]

    @property
    def sub_configs(self) -> dict[str, type]:  # type: ignore[override]
        """Tells transformers which attributes are configurations."""
        return {f"component_{k}": AutoConfig for k in range(self.num_components)}
