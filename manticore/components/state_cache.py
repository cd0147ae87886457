"""A cache of transformers that counts its tokens and can also reorder, repeat and reset recurrent states.

transformers' own cache asks an attention layer how long it is, so that one made of recurrent layers alone cannot say,
and it repeats and selects sequences of attention layers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

from manticore.errors import ManticoreError

try:
    from transformers.cache_utils import DummyLayer as EmptyLayer
except ImportError:

    class EmptyLayer:  # type: ignore[no-redef]
        """The place of a layer that caches nothing, as transformers has it from 5.23 on."""

        supports_early_init = False
        is_initialized = is_compileable = is_croppable = True
        is_sliding = False
        keys = values = None

        def _nothing(self, *args: Any) -> None: ...

        offload = prefetch = reset = crop = reorder_cache = batch_repeat_interleave = batch_select_indices = _nothing

        def get_max_length(self) -> int:
            """None."""
            return -1


class KnownLengthCache(Cache):
    """A cache that can be asked for its length whatever its layers are."""

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys; where no layer attends, as if one did."""
        if any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            found: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)
            return found
        return self.get_seq_length() + query_length, 0

    @property
    def is_compileable(self) -> bool:
        """No: shapes grow with every token."""
        return False


class CountingCache(KnownLengthCache):
    """A cache over given layers; whoever runs them adds to ``seen_tokens``."""

    def __init__(self, layers: list[Any]) -> None:
        self.seen_tokens = 0
        """Tokens that went through the model, padding included."""
        self.layout: Tensor | None = None
        """``[B, prompt]``, False on padding: how a prompt was rearranged before it was read; None where it was not."""
        self.real_columns = 0
        """So many columns of an attention mask are known to need no look."""
        super().__init__(layers=layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens cached."""
        return self.seen_tokens

    @property
    def sequences(self) -> int | None:
        """Sequences cached; None while there are none."""
        for layer in self.layers:
            if torch.is_tensor(keys := getattr(layer, "keys", None)):
                return len(keys)
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                for states in (layer.conv_states, layer.recurrent_states):
                    for state in states.values():
                        if state is not None:
                            return len(state)
        return None

    @property
    def is_linear(self) -> list[bool]:
        """Which layers are recurrent; none where all are, since ``generate`` takes such a cache for one without length.

        A prompt given whole with the cache of its beginning would be read twice.
        """
        found: list[bool] = super().is_linear
        return [False] * len(found) if all(found) else found

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.seen_tokens = self.real_columns = 0
        self.layout = None

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back.

        Raises:
            ManticoreError: a recurrent layer is kept; its state cannot be taken back.
        """
        if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self.layers):
            raise ManticoreError(
                "cache: a recurrent layer's state cannot be taken back by some tokens. Fix: start from the prompt again"
            )
        super().crop(tokens_to_remove)
        self.seen_tokens -= abs(tokens_to_remove)
        self.real_columns = 0
        if self.layout is not None:
            self.layout = self.layout[:, : self.seen_tokens]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        if self.layout is not None:
            self.layout = self.layout.repeat_interleave(repeats, dim=0)
        for layer in self.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                _change_states(layer, lambda state: state.repeat_interleave(repeats, dim=0))
            if hasattr(layer, "batch_repeat_interleave"):
                layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some sequences of the batch."""
        self._select_layout(indices)
        select_sequences(self.layers, indices)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Put other sequences into the batch's places."""
        super().reorder_cache(beam_idx)
        self._select_layout(beam_idx)

    def _select_layout(self, indices: torch.Tensor) -> None:
        if self.layout is not None:
            self.layout = self.layout[indices.to(self.layout.device)]


class CountedPasses(CountingCache):
    """A cache of one component, which the passes of its runner count."""


def own_cache(config: Any) -> Cache:
    """An empty cache of a component that runs alone, in a runner: transformers' own wherever that knows its length."""
    cache = DynamicCache(config=config)
    return CountedPasses(cache.layers) if cache.layers and all(cache.is_linear) else cache


def select_sequences(layers: Iterable[Any], indices: Tensor) -> None:
    """Keep some sequences, perhaps several times, of what layers of a cache hold."""
    for layer in layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            _change_states(layer, lambda state: state[indices.to(state.device)])
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(indices)


def forget_sequences(layers: Iterable[Any], batch: int) -> None:
    """Make room for so many sequences in states that were reset, whatever number they were of."""
    for layer in layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            _change_states(layer, lambda state: state.new_zeros(batch, *state.shape[1:]))


def has_states(layers: Iterable[Any]) -> bool:
    """Whether one of a cache's layers holds a state or a window of the last tokens."""
    return any(
        isinstance(layer, LinearAttentionCacheLayerMixin) or getattr(layer, "is_sliding", False) for layer in layers
    )


def _change_states(layer: LinearAttentionCacheLayerMixin, change: Callable[[Tensor], Tensor]) -> None:
    """Apply ``change`` to every state ``[B, …]`` that a recurrent layer holds."""
    for states in (layer.conv_states, layer.recurrent_states):
        for index, state in states.items():
            if state is not None:
                states[index] = change(state)
