"""Configuration of a hybrid: its components' own configurations, and how they are cut and mixed.

Shapes: K components, N blocks.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from transformers import AutoConfig, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from typing_extensions import TypedDict

from manticore.boundaries import cut, wrong_end, wrong_rows
from manticore.components.extra_outputs import ask_for_no_more
from manticore.components.loading import check_family
from manticore.components.positions import context_length
from manticore.components.state_cache import EmptyLayer
from manticore.errors import ManticoreError, in_brief
from manticore.hybrid.feature_spaces import is_marked, wrong_sharing, wrong_spaces
from manticore.making import refuse_misfits
from manticore.option_types import Count, Drop, Edges, Forgetting, Wanted

_LONGEST_TUPLE = 100
"""More values than a decoder layer of any family returns."""


_SAVED = "load a config.json that save_pretrained wrote"

Number = Annotated[int, Field(ge=0), Wanted("a whole number", _SAVED)]
Path = Annotated[list[int], Wanted("one component per block", "name one component per block")]
Sizes = Annotated[
    list[list[Annotated[int, Field(ge=0, lt=_LONGEST_TUPLE)]]],
    Wanted("one count per component's layer", _SAVED),
]
Boundaries = Annotated[list[Edges], Wanted("layer indices for each component", _SAVED)]
Spaces = Annotated[list[Annotated[int, Field(ge=0)]], Wanted("a component's index for each component", _SAVED)]
Flags = Annotated[list[bool], Wanted("true or false for each component", _SAVED)]
Parents = Annotated[list[dict[str, str | None]], Wanted("names for each component", _SAVED)]


class Generation(TypedDict, total=False):
    """Settings that a component's ``generate`` goes by; ends of text are tokens."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    eos_token_id: Number | list[Number] | None


Generations = Annotated[list[Generation], Wanted("settings for each component", _SAVED)]

_READ_FROM_FILES = (
    *(
        "num_components",
        "num_blocks",
        "uneven_boundaries",
        "feature_spaces",
        "shared_weights",
        "vocab_size",
        "released",
        "path",
        "layer_outputs",
    ),
    *("one_token_at_a_time", "output", "forgetting", "drop_below", "drop_after"),
    *("parents", "generation", "generation_component"),
)
"""Fields whose values the code relies on."""


class ManticoreConfig(PreTrainedConfig):
    """Configuration of :class:`~manticore.ManticoreForCausalLM`.

    The configurations of the components are the attributes ``component_0`` … ``component_{K-1}``, since
    transformers serialises, and recurses into, sub-configurations that are direct attributes only.
    """

    model_type = "manticore"

    num_components: Number = 0
    """K."""
    num_blocks: Count = 1
    """N: how many segments every component is cut into."""
    uneven_boundaries: Boundaries | None = None
    """Where components are not cut evenly: what :attr:`boundaries` is; None where they are, and in older folders."""
    feature_spaces: Spaces | None = None
    """Per component the first one that shares its feature space: no projector stands between the two; None where all
    are apart, and in older folders."""
    shared_weights: Spaces | None = None
    """Per component the first one that it holds weights together with (:mod:`manticore.hybrid.shared_weights`); None
    where nobody does, and in older folders."""
    mixing: str = "translated"
    """Registered name of how components are mixed."""
    released: bool = False
    """Gated mixing only: the function of the published method's released code, whole (fresh tied tables, positions and
    norms inside the branches, block 0's weights at the heads)."""
    output: str = "logits"
    """Registered name of how the components' predictions become one."""
    forgetting: Forgetting = 0.0
    """Output ``bayes`` only: the share of the weights that goes back to the output weights after each token."""
    drop_below: Drop | None = None
    """Output ``bayes`` at R = I only: components whose weight falls below this stop reading a sequence; None: none."""
    drop_after: Count = 32
    """From how many tokens of a sequence on."""
    projector: str = "linear"
    """Registered name of the kind of projector."""
    projector_options: dict[str, Any] | None = None
    """Arguments of the projectors, such as ``rank``."""
    layer_outputs: Sizes | None = None
    """Per component and layer: 0 where the layer returns a tensor, else the length of its tuple."""
    one_token_at_a_time: Flags | None = None
    """Per component: whether its family can continue a cached prompt by one token only."""
    path: Path | None = None
    """The component that each block keeps, once the hybrid is discretized."""
    searched_weights: list[list[float]] | None = None
    """``[N, K]`` mixture weights the hybrid was discretized from."""
    parents: Parents | None = None
    """Per component the ``source`` it came from, its ``commit`` on the hub, the ``license`` that its card states."""
    generation: Generations | None = None
    """Per component the settings that its own ``generate`` goes by; None where a task brought its vocabulary."""
    generation_component: Number = 0
    """The component whose settings hold, apart from ends of text: the one whose tokenizer is the hybrid's."""
    vocab_size: Number = 0
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
    """Of a path: whether its last component predicts with the embeddings of its first, another one."""
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_misfits("config", ManticoreConfig, {name: getattr(self, name) for name in _READ_FROM_FILES})
        missing = next((k for k in range(self.num_components) if kwargs.get(f"component_{k}") is None), None)
        if missing is not None:
            raise ManticoreError(
                f"config: component_{missing} is missing (num_components is {self.num_components}). Fix: {_SAVED}"
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
                    raise ManticoreError(f"config: component_{k} is a hybrid itself. Fix: combine its components")
                if family not in CONFIG_MAPPING:
                    raise ManticoreError(
                        f"config: component_{k} has unknown model_type {family!r}. "
                        "Fix: a version of transformers that knows it"
                    )
                value = AutoConfig.for_model(family, **value)
            if not isinstance(value, PreTrainedConfig):
                kind = type(value).__name__
                raise ManticoreError(f"config: component_{k} is a {kind} (expected a configuration). Fix: {_SAVED}")
            check_family(value, f"config: component_{k}")
            ask_for_no_more(value)
            setattr(self, f"component_{k}", value)
        for name, wanted in asked.items():
            # once more, now that there are components that it can reach
            if wanted is not None:
                setattr(self, f"_{name}", wanted)
        path, known = self.path, range(self.num_components)
        if path is not None and (len(path) != self.num_blocks or not all(m in known for m in path)):
            raise ManticoreError(
                f"config: path {path} (expected {self.num_blocks} indices below {self.num_components}). "
                "Fix: name one component per block"
            )
        if self.released and self.mixing != "gated":
            raise ManticoreError(
                f"config: released is {self.released!r} with mixing {self.mixing!r} (expected true with gated only). "
                "Fix: mixing gated, or released false"
            )
        self._check_output()
        if self.num_components:
            self._check_boundaries()
            self._check_per_component()
            kept = sorted(set(self.path)) if self.path is not None else range(self.num_components)
            self.hidden_size = max(self.components[k].hidden_size for k in kept)
            # absent where no component names a length, as in a Mamba's configuration: tools ask whether it is there
            lengths = [length for k in kept if (length := context_length(self.components[k])) is not None]
            if lengths:
                self.max_position_embeddings = min(lengths)
            self.num_hidden_layers = sum(config.num_hidden_layers for config in self.components)

    def _check_output(self) -> None:
        """Refuse an output that these components, or this kind of hybrid, cannot have."""
        output, wrong = self.output, None
        made_anew = [k for k, each in enumerate(self.reembedded or []) if each]
        if self.forgetting and output != "bayes":
            wrong = f"forgetting is {self.forgetting} with output {output!r} (expected with bayes only)", "output bayes"
        elif output != "logits" and self.released:
            wrong = f"output {output!r} with released, whose function mixes logits", "output logits"
        elif output != "logits" and self.path is not None:
            wrong = f"output {output!r} with path {self.path}, where one component predicts alone", "output logits"
        elif output == "bayes" and made_anew:
            wrong = (
                f"output 'bayes', but component {made_anew[0]} was re-embedded: it has not learned to predict the kept "
                "tokenizer's tokens, so that its likelihoods do not compare with those of components that have",
                "components that share a tokenizer, or output probabilities or gate",
            )
        elif self.drop_below is not None:
            wrong = self._no_drop()
        if wrong is not None:
            raise ManticoreError(f"config: {wrong[0]}. Fix: {wrong[1]}")

    def _no_drop(self) -> tuple[str, str] | None:
        """Why components of this hybrid cannot be dropped, and what to do."""
        drop, out = f"drop_below is {self.drop_below}", "leave drop_below out"
        if self.output != "bayes" or self.mixing != "routed":
            what = f"{drop} with output {self.output!r} and mixing {self.mixing!r} (expected bayes and routed)"
            return what, f"output bayes, mixing routed, or {out}"
        if self.forgetting:
            return (
                f"{drop} with forgetting {self.forgetting}: what is dropped cannot come back",
                f"{out}, or forgetting",
            )
        if self.num_components and self.drop_below is not None and self.drop_below >= 1 / self.num_components:
            what = f"{drop} with {self.num_components} components (expected below 1/{self.num_components})"
            return what, "for instance 0.01"
        return None

    def _check_boundaries(self) -> None:
        """Refuse boundaries that these components do not have, and more blocks than layers."""
        rows = self.uneven_boundaries
        if rows is None:
            self._even_boundaries()
            return
        wrong = [
            *wrong_rows(rows, self.num_components, self.num_blocks),
            *(
                end
                for k, (row, config) in enumerate(zip(rows, self.components))
                if (end := wrong_end(row, f"component {k}", config.num_hidden_layers)) is not None
            ),
        ]
        if wrong:
            what, fix = wrong[0]
            raise ManticoreError(f"config: {what}. Fix: {fix}")
        if rows == self._even_boundaries():
            # one form of each hybrid
            self.uneven_boundaries = None

    def _check_per_component(self) -> None:
        """Refuse lists that do not belong to these components."""
        kept = self.components if self.path is None else [self.components[k] for k in set(self.path)]
        rows, count = min(config.vocab_size for config in kept), self.num_components
        depths = [config.num_hidden_layers for config in self.components]
        listed = {name: getattr(self, name) for name in ("one_token_at_a_time", "generation", "parents")}
        wrong = [
            *([f"vocab_size is {self.vocab_size}, a component has {rows} tokens"] if self.vocab_size > rows else []),
            *(
                f"{name} is {in_brief(values, 80)} (expected one for each of {count} components)"
                for name, values in listed.items()
                if values is not None and len(values) != count
            ),
        ]
        if self.generation_component >= count:
            wrong.append(f"generation_component is {self.generation_component} (expected an index below {count})")
        if self.layer_outputs is not None and [len(sizes) for sizes in self.layer_outputs] != depths:
            wrong.append(f"layer_outputs does not name one count for each of the components' {depths} layers")
        spaces, owners = self.feature_spaces, self.shared_weights
        shared = [
            None if spaces is None else wrong_spaces(spaces, self.components),
            None if owners is None else wrong_sharing(owners, self.spaces),
        ]
        wrong += [impossible for impossible in shared if impossible]
        if wrong:
            raise ManticoreError(f"config: {wrong[0]}. Fix: {_SAVED}")

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
        if self.uneven_boundaries is None:
            # folders of evenly cut hybrids are what they always were
            values.pop("uneven_boundaries", None)
        for name in ("feature_spaces", "shared_weights"):
            if getattr(self, name) is None:
                values.pop(name, None)
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
        return [list(row) for row in self.uneven_boundaries or ()] or self._even_boundaries()

    @property
    def spaces(self) -> list[int]:
        """Per component its feature space, called by the first component that is in it."""
        return list(range(self.num_components)) if self.feature_spaces is None else list(self.feature_spaces)

    @property
    def owners(self) -> list[int]:
        """Per component the first one that it shares weights with, itself where it shares none."""
        return list(range(self.num_components)) if self.shared_weights is None else list(self.shared_weights)

    @property
    def fresh(self) -> frozenset[int]:
        """The components made beside another one that is here: what stays in them is no parent by itself."""
        spaces = self.spaces
        made = {k for k in range(self.num_components) if is_marked(self.components[k]) and spaces.count(spaces[k]) > 1}
        return frozenset(made) if len(made) < self.num_components else frozenset()

    def _even_boundaries(self) -> list[list[int]]:
        return [cut(config.num_hidden_layers, self.num_blocks) for config in self.components]

    @property
    def sub_configs(self) -> dict[str, type]:  # type: ignore[override]
        """Tells transformers which attributes are configurations."""
        return {f"component_{k}": AutoConfig for k in range(self.num_components)}
