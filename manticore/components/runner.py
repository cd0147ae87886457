"""Runs any layer range of a causal LM without knowing its family: record and inject.

A component stays the whole model that transformers built. Its own forward runs once over stand-ins that only
note what every decoder layer would have been called with (masks, rotary embeddings, positions, cache); the real
layers are then called with those arguments and whatever hidden state the hybrid hands them. The last stand-in returns
the final hidden state, which yields final norm, head and any scaling of the logits exactly as the family defines them:
in the same pass, while the model waits at that place (:meth:`Runner.logits`), or in a second one
(:meth:`Runner.normed`).

Shapes: B batch, T tokens, D width of this component, V rows of its head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from manticore.components.cache_argument import cache_argument
from manticore.components.padding import keep_padding_out
from manticore.components.positions import rope_switch, tabulated_positions
from manticore.errors import ManticoreError


@dataclass
class Recording:
    """What one forward pass of a component hands to its layers."""

    input_ids: Tensor
    """``[B, T]``."""
    hidden: Tensor
    """``[B, T, D]``: what enters the first layer (embeddings, positions and scaling done)."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)
    """Arguments of each layer, the hidden state left out."""


class _StandIn(nn.Module):
    """Takes a decoder layer's place: notes its arguments, or returns an injected hidden state."""

    def __init__(self, layer: nn.Module, index: int, runner: Runner) -> None:
        super().__init__()
        # outside the module registry: a stand-in must own no parameters
        self.__dict__["_real"] = layer
        self.__dict__["_runner"] = runner
        self.__dict__["_index"] = index

    def __getattr__(self, name: str) -> Any:
        # some models read a layer's type or window before they call it
        return getattr(self.__dict__["_real"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._runner._stand_in(self._index, args, kwargs)


class Runner:
    """Embeddings, layers, final norm and head of one causal LM, each callable on its own.

    Not a module (it owns nothing) and not safe for concurrent use by several threads. It lets the model's recurrent
    layers see nothing of padding (:mod:`manticore.components.padding`).

    Args:
        model: any decoder-only causal LM of transformers.
        tuple_sizes: what :attr:`tuple_sizes` was when the component was whole; None measures it. A discretized
            hybrid needs it, since a dropped layer cannot be asked.

    Raises:
        ManticoreError: the model has no single list of decoder layers.
    """

    def __init__(self, model: PreTrainedModel, tuple_sizes: list[int] | None = None) -> None:
        self.model = model
        self._owner, self._attribute = _find_layers(model)
        self._tuple_sizes = tuple_sizes
        self._calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._first: Tensor | None = None
        self._injected: Tensor | None = None
        self._middle: Callable[[], Tensor] | None = None
        self._real: nn.ModuleList | None = None
        self._stand_ins: nn.ModuleList | None = None
        base_parameters = inspect.signature(type(model.base_model).forward).parameters
        self.accepts_positions = "position_ids" in base_parameters
        self.cache_argument = cache_argument(type(model.base_model).forward)
        # attention layers refuse a stream of another precision than their weights
        self._takes_any_precision = bool(getattr(model.config, "residual_in_fp32", False))
        self._masks_raw = not self.accepts_positions and all(DynamicCache(config=model.config).is_linear)
        self.switch = rope_switch(model.config)
        """After how many tokens the rotary embedding turns otherwise; None if it does not."""
        for layer in self.layers:
            keep_padding_out(layer)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        if self._real is not None:
            return self._real
        return self._owner._modules[self._attribute]  # type: ignore[return-value]

    @property
    def num_layers(self) -> int:
        """How many decoder layers the component has."""
        return len(self.layers)

    @property
    def positions(self) -> int | None:
        """The most tokens of one sequence that the component can take; None where nothing ends."""
        return tabulated_positions(self.model)

    @property
    def width(self) -> int:
        """D, the width of the hidden states between layers."""
        return self.model.config.hidden_size

    @property
    def head_width(self) -> int:
        """Width of what the family's heads read; some project the last features before."""
        head: Any = self.model.get_output_embeddings()
        return head.weight.shape[1]

    def record(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        inputs_embeds: Tensor | None = None,
    ) -> Recording:
        """Run the component's own forward over stand-ins.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, past + T]`` of 0 and 1, or None.
            position_ids: ``[B, T]``; None stays None, since families differ in what they derive then.
            cache: a cache the component's layers read and extend.
            use_cache: whether layers shall extend the cache.
            inputs_embeds: ``[B, T, D]``, taken in place of the family's token embeddings; positions are added to it.
        """
        arguments = self._arguments(input_ids, attention_mask, position_ids, cache, use_cache)
        self._calls.clear()
        self._injected = None
        try:
            with self._stand_ins_in_place():
                if inputs_embeds is None:
                    self.model.base_model(**arguments)
                else:
                    self.model.base_model(**{**arguments, "input_ids": None, "inputs_embeds": inputs_embeds})
            return self._recording(input_ids)
        finally:
            # keeps neither activations nor their graph alive
            self._calls.clear()
            self._first = None

    def logits(
        self,
        middle: Callable[[Recording], Tensor],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
    ) -> Tensor:
        """Run the component's own forward once, with ``middle`` where its layers are: ``[B, t, V]``.

        Args:
            middle: takes the recording, returns what leaves the last layer, ``[B, T, D]``; other components may run
                meanwhile.
            input_ids: as in :meth:`record`, like the arguments after it.
            attention_mask: see there.
            position_ids: see there.
            cache: see there.
            use_cache: see there.
            logits_to_keep: how many of the last positions the head reads, or which ones; 0 stands for all.
        """
        arguments = self._arguments(input_ids, attention_mask, position_ids, cache, use_cache)

        def last() -> Tensor:
            recording = self._recording(input_ids)
            self._calls.clear()
            self._first = self._middle = None
            return self._as_taken(recording, middle(recording))

        self._calls.clear()
        self._injected = None
        self._middle = last
        try:
            with self._stand_ins_in_place():
                output = self.model(**arguments, logits_to_keep=logits_to_keep, return_dict=True)
            if self._middle is not None:
                raise ManticoreError(not_reproducible(self.model, "its last layer is not called after its first"))
            return output.logits
        finally:
            self._calls.clear()
            self._first = self._middle = None

    def _arguments(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        use_cache: bool,
    ) -> dict[str, Any]:
        """What the model's own forward takes."""
        if self._tuple_sizes is None:
            self._tuple_sizes = self._probe(input_ids.device)
        if self.splits(attention_mask):
            raise ManticoreError(
                f"forward: the rotary embedding of {self.model.config.model_type} changes after {self.switch} tokens "
                "for all rows of a batch, and this one has shorter and longer rows. "
                "Fix: batch rows that are all shorter, or all longer"
            )
        if self._masks_raw:
            attention_mask = _mask_of_new_tokens(attention_mask, input_ids.shape[1])
        arguments: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            self.cache_argument: cache,
        }
        if self.accepts_positions:
            arguments["position_ids"] = position_ids
        return arguments

    def splits(self, attention_mask: Tensor | None) -> bool:
        """Whether a batch has rows on both sides of the position where the rotary embedding changes.

        Its longest row would decide how the shorter ones are turned, which alone are turned otherwise.
        """
        if self.switch is None or attention_mask is None or attention_mask.shape[-1] <= self.switch:
            return False
        lengths = attention_mask.sum(-1)
        return int(lengths.min()) <= self.switch < int(lengths.max())

    def _recording(self, input_ids: Tensor) -> Recording:
        """What the stand-ins noted."""
        if self._first is None:
            raise ManticoreError(not_reproducible(self.model, "its last layer is not called after its first"))
        if self._first.shape != (*input_ids.shape, self.width):
            # several streams, or a width of its own: nothing that another component's features could be mixed into
            why = f"its layers take {list(self._first.shape)} (expected {[*input_ids.shape, self.width]})"
            raise ManticoreError(not_reproducible(self.model, why))
        calls = [self._calls.get(i, ((), {})) for i in range(self.num_layers)]
        return Recording(input_ids=input_ids, hidden=self._first, calls=calls)

    def _as_taken(self, recording: Recording, hidden: Tensor) -> Tensor:
        """``hidden`` in the precision that the component's layers and norm take."""
        if self._takes_any_precision:
            return hidden
        return hidden.to(recording.hidden.dtype)

    def run(self, recording: Recording, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Layers ``start`` … ``stop - 1`` on ``hidden``: ``[B, T, D]`` → ``[B, T, D]``."""
        hidden = self._as_taken(recording, hidden)
        sizes = self.tuple_sizes
        for index, layer in enumerate(islice(self.layers, start, stop), start):
            args, kwargs = recording.calls[index]
            output = layer(hidden, *args, **kwargs)
            size = len(output) if isinstance(output, tuple) else 0
            if size != sizes[index]:
                why = f"layer {index} returned {size} values, {sizes[index]} when the hybrid was built"
                raise ManticoreError(not_reproducible(self.model, why))
            hidden = output[0] if size else output
        return hidden

    def normed(self, recording: Recording, hidden: Tensor) -> Tensor:
        """Final norm without head: ``[B, t, D]`` → the features ``[B, t, head_width]`` that the family's heads read."""
        return self._inject(self.model.base_model, recording, hidden).last_hidden_state

    def _inject(self, model: nn.Module, recording: Recording, hidden: Tensor) -> Any:
        """What ``model`` makes of ``hidden`` where its last layer would have returned it."""
        tokens = hidden.shape[1]
        self._injected = self._as_taken(recording, hidden)
        try:
            with self._stand_ins_in_place():
                return model(input_ids=recording.input_ids[:, -tokens:], use_cache=False, return_dict=True)
        finally:
            self._injected = None

    def _stand_in(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._injected is not None:
            hidden = self._injected
        else:
            if args:
                hidden, args = args[0], args[1:]
            else:
                kwargs = dict(kwargs)
                hidden = kwargs.pop("hidden_states")
            if index == 0:
                self._first = hidden
            self._calls[index] = (args, kwargs)
            if self._middle is not None and index == self.num_layers - 1:
                hidden = self._middle()
        size = self.tuple_sizes[index]
        return hidden if size == 0 else (hidden,) + (None,) * (size - 1)

    @contextmanager
    def _stand_ins_in_place(self) -> Iterator[None]:
        real: Any = self._owner._modules[self._attribute]
        if self._stand_ins is None or not all(s._real is layer for s, layer in zip(self._stand_ins, real)):
            self._stand_ins = nn.ModuleList([_StandIn(layer, i, self) for i, layer in enumerate(real)])
        self._owner._modules[self._attribute] = self._stand_ins
        self._real = real
        try:
            yield
        finally:
            self._owner._modules[self._attribute] = real
            self._real = None

    def __getstate__(self) -> dict[str, Any]:
        # copies make stand-ins of their own
        return {**self.__dict__, "_stand_ins": None}

    @property
    def tuple_sizes(self) -> list[int]:
        """Per layer: 0 where it returns a tensor, else the length of the tuple it returns."""
        if self._tuple_sizes is None:
            self._tuple_sizes = self._probe(next(self.model.parameters()).device)
        return self._tuple_sizes

    def _probe(self, device: torch.device) -> list[int]:
        """One token through the real layers, watched by hooks."""
        sizes = [0] * self.num_layers

        def watch(index: int) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                sizes[index] = len(output) if isinstance(output, tuple) else 0

            return hook

        handles = [layer.register_forward_hook(watch(i)) for i, layer in enumerate(self.layers)]
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad():
                self.model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
            for module in training:
                module.training = True
        return sizes


def _find_layers(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that owns the decoder layers and the attribute they are under."""
    depth = model.config.num_hidden_layers
    found: list[tuple[nn.Module, str]] = []
    inner: set[int] = set()
    # modules() goes from the outside in, so a list inside a layer is seen after the list of layers
    for owner in model.base_model.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth and id(owner) not in inner:
                found.append((owner, name))
                inner.update(id(module) for module in child.modules())
    if len(found) != 1:
        what = "no list" if not found else f"{len(found)} lists"
        raise ManticoreError(not_reproducible(model, f"it has {what} of {depth} decoder layers"))
    return found[0]


def _mask_of_new_tokens(mask: Tensor | None, tokens: int) -> Tensor | None:
    """State-space models take the mask of the new tokens only; one new token on a filled cache needs none."""
    if mask is None or mask.dim() != 2 or mask.shape[1] == tokens:
        return mask
    return None if tokens == 1 else mask[:, -tokens:]


def not_reproducible(model: PreTrainedModel, why: str) -> str:
    """The error text for a component whose forward cannot be taken apart."""
    name = model.config.name_or_path or type(model).__name__
    family = model.config.model_type
    return f"component {name}: family {family!r} cannot be cut into blocks: {why}. Fix: use another checkpoint"
