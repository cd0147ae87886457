"""One cache for all components: attention keys and values, and the states of recurrent layers.

The layers of all components lie flat in one ``Cache``, so that reordering, resetting and repeating a batch reach
every one of them. Each component sees its own stretch through a view over the same layer objects, so that layer
indices inside the component stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from manticore.components.state_cache import CountingCache, EmptyLayer


class ComponentCache(Cache):
    """What one component sees: its own layers, and the number of tokens that the whole hybrid has seen."""

    def __init__(self, layers: list[Any], hybrid: HybridCache) -> None:
        super().__init__(layers=layers)
        self._hybrid = hybrid

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens cached; recurrent layers do not count them, the hybrid does."""
        return self._hybrid.seen_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys; where a component's attention layers were dropped, as if one were there."""
        if any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            return super().get_mask_sizes(query_length, layer_idx)
        return self._hybrid.seen_tokens + query_length, 0

    @property
    def is_compileable(self) -> bool:
        """No: shapes grow with every token."""
        return False


class HybridCache(CountingCache):
    """The cache of a hybrid.

    Args:
        components: the components' configurations.
        kept: per component the layers that the hybrid runs; the others get a placeholder, since an attention layer
            that never fills would make masks too short.
    """

    def __init__(self, components: Sequence[PreTrainedConfig], kept: Sequence[Sequence[int]]) -> None:
        self.kept = [list(layers) for layers in kept]
        self.views: list[ComponentCache] = []
        flat: list[Any] = []
        for config, layers_kept in zip(components, kept):
            layers: list[Any] = DynamicCache(config=config).layers
            chosen = set(layers_kept)
            layers = [layer if i in chosen else EmptyLayer() for i, layer in enumerate(layers)]
            flat.extend(layers)
            self.views.append(ComponentCache(layers, self))
        super().__init__(flat)
