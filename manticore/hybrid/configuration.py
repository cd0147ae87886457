"""Configuration of a hybrid: its components' own configurations, and how they are cut and mixed.

Letters: K components, N blocks.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

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
    vocab_size: int = 0
    """Rows of the logits."""
    tokenizer_component: int | None = None
    """The component whose tokenizer was kept, where components with others were re-embedded for it."""
    reembedded: list[dict[str, Any] | None] | None = None
    """Per component how many of the kept tokenizer's tokens were matched, and how; None where it had that tokenizer."""
    hidden_size: int = 0
    """The largest width among the components."""
    num_hidden_layers: int = 0
    """Decoder layers of all components together."""
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        values = [kwargs.pop(f"component_{k}", None) for k in range(self.num_components)]
        # first, since it sets the attention implementation of every sub-configuration it finds
        super().__post_init__(**kwargs)
        for k, value in enumerate(values):
            if value is None:
                raise ManticoreError(
                    f"config: component_{k} is missing (num_components is {self.num_components}). "
                    "Fix: load a config.json that save_pretrained wrote"
                )
            if isinstance(value, dict):
                value = copy.deepcopy(value)
                family = value.pop("model_type", None)
                if family not in CONFIG_MAPPING or family == self.model_type:
                    raise ManticoreError(
                        f"config: component_{k} has unknown model_type {family!r}. "
                        "Fix: a version of transformers that knows it"
                    )
                value = AutoConfig.for_model(family, **value)
            setattr(self, f"component_{k}", value)
        if self.num_components:
            self.hidden_size = max(config.hidden_size for config in self.components)
            self.num_hidden_layers = sum(config.num_hidden_layers for config in self.components)
            self.boundaries  # noqa: B018  (refuses more blocks than layers)
        if self.path is not None and (
            len(self.path) != self.num_blocks or not all(0 <= m < self.num_components for m in self.path)
        ):
            raise ManticoreError(
                f"config: path {self.path} (expected {self.num_blocks} indices below {self.num_components}). "
                "Fix: name one component per block"
            )

    @property
    def components(self) -> list[PreTrainedConfig]:
        """The components' configurations, K of them."""
        return [getattr(self, f"component_{k}") for k in range(self.num_components)]

    @property
    def boundaries(self) -> list[list[int]]:
        """Per component the N + 1 layer indices where its segments start and end."""
        return [cut(config.num_hidden_layers, self.num_blocks) for config in self.components]

    @property
    def sub_configs(self) -> dict[str, type]:  # type: ignore[override]
        """Tells transformers which attributes are configurations."""
        return {f"component_{k}": AutoConfig for k in range(self.num_components)}
