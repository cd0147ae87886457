"""Runs any layer range of a causal LM without knowing its family: record, run, finish.

A component stays the whole model that transformers built. Its own forward runs once over stand-ins that only
note what every decoder layer would have been called with (masks, rotary embeddings, positions, cache), and waits in the
last of them. Meanwhile the real layers are called with those arguments and whatever hidden state the hybrid hands them.
The last stand-in then returns the final hidden state, and the model goes on to its final norm, head and any scaling of
the logits exactly as the family defines them (:meth:`Runner.opened`). A component whose norm and head nobody reads is
recorded alone (:meth:`Runner.record`).

Shapes: B batch, T tokens, D width of this component, V rows of its head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from manticore.components.cache_argument import cache_argument
from manticore.components.padding import keep_padding_out
from manticore.components.positions import rope_switch, tabulated_positions
from manticore.components.state_cache import CountedPasses
from manticore.errors import ManticoreError


@dataclass
class Recording:
    """What one forward pass of a component hands to its layers, and where that pass waits for them."""

    input_ids: Tensor
    """``[B, T]``."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)
    """Arguments of each layer, the hidden state left out."""
    own_forward: Callable[[], Any] = field(repr=False)
    """Runs the component's own forward over the stand-ins, while they are in place."""
    inside: Callable[[], Any] | None = field(default=None, repr=False)
    """What runs while the own forward waits in its last layer; None once that has begun."""
    inner: Any = field(default=None, repr=False)
    """What ``inside`` returned."""
    first: Tensor | None = None
    final: Tensor | None = None
    """``[B, T, D]``: what norm and head read; set by ``inside``."""
    head_input: Tensor | None = None
    """``[B, t, …]``: what the head read, where that was asked for; None of a family that does not call it."""

    @property
    def hidden(self) -> Tensor:
        """``[B, T, D]``: what enters the first layer (embeddings, positions and scaling done)."""
        assert self.first is not None
        return self.first


class _StandIn(nn.Module):
    """Takes a decoder layer's place: notes its arguments; the last one waits for what runs inside."""

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
        runner, index = self._runner, self._index
        recording = runner._open
        # families differ in whether they name the hidden state
        if args:
            hidden, args = args[0], args[1:]
        else:
            kwargs = dict(kwargs)
            hidden = kwargs.pop("hidden_states")
        if index == 0:
            recording.first = hidden
        recording.calls[index] = (args, kwargs)
        if index == runner.num_layers - 1 and (inside := recording.inside) is not None:
            # let go first: what runs inside knows this recording, and a circle would keep every activation alive
            recording.inside = None
            runner._check(recording)
            recording.inner = inside()
            hidden, recording.final = runner._as_taken(recording, recording.final), None
        size = runner.tuple_sizes[index]
        return hidden if size == 0 else (hidden,) + (None,) * (size - 1)


class _HeadStandIn(nn.Module):
    """Takes a head's place: notes what it reads."""

    def __init__(self, head: nn.Module, recording: Recording) -> None:
        super().__init__()
        self.__dict__["_real"] = head
        self.__dict__["_recording"] = recording

    def __getattr__(self, name: str) -> Any:
        # some models ask its weight for a type
        return getattr(self.__dict__["_real"], name)

    def forward(self, hidden: Tensor) -> Any:
        self._recording.head_input = hidden
        return self._real(hidden)


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
        self._open: Any = None
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
        """Run the component's own forward over stand-ins, without its head.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, past + T]`` of 0 and 1, or None.
            position_ids: ``[B, T]``; None stays None, since families differ in what they derive then.
            cache: a cache the component's layers read and extend.
            use_cache: whether layers shall extend the cache.
            inputs_embeds: ``[B, T, D]``, taken in place of the family's token embeddings; positions are added to it.
        """
        with self.opened(
            None, input_ids, attention_mask, position_ids, cache, use_cache, inputs_embeds, head=False
        ) as recording:
            recording.own_forward()
        return recording

    def logits(
        self, middle: Callable[[Recording], Tensor], *given: Any, logits_to_keep: int | Tensor = 0, **named: Any
    ) -> Tensor:
        """Run the component's own forward once, with ``middle`` where its layers are: ``[B, t, V]``.

        Args:
            middle: takes the recording, returns what leaves the last layer, ``[B, T, D]``; other components may run
                meanwhile.
            given: as :meth:`record` takes them, like ``named``.
            logits_to_keep: how many of the last positions the head reads, or which ones; 0 stands for all.
            named: see there.
        """

        def inside() -> None:
            recording.final = middle(recording)

        with self.opened(inside, *given, logits_to_keep=logits_to_keep, **named) as recording:
            return recording.own_forward().logits

    @contextmanager
    def opened(
        self,
        inside: Callable[[], Any] | None,
        input_ids: Tensor,
        *given: Any,
        head: bool = True,
        logits_to_keep: int | Tensor = 0,
        head_input: bool = False,
        **named: Any,
    ) -> Iterator[Recording]:
        """Stand-ins in the layers' place, for one pass: ``recording.own_forward()`` runs the component over them.

        Args:
            inside: runs while the own forward waits in its last layer; sets ``recording.final``.
            input_ids: ``[B, T]``.
            given: as :meth:`record` takes them, like ``named``.
            head: whether the own forward is the whole model's, or ends with the final norm.
            logits_to_keep: how many of the last positions the head reads, or which ones; 0 stands for all.
            head_input: whether to note what the head reads.
            named: see there.

        Raises:
            ManticoreError: the family's forward cannot be taken apart, or a batch on both sides of a rotary switch.
        """
        arguments = self._arguments(input_ids, *given, **named)
        if head:
            arguments["logits_to_keep"] = logits_to_keep
        if inside is not None:
            # whatever the configuration asks for, outputs are read by name; recorded alone, nobody reads them
            arguments["return_dict"] = True
        # no function of ours: between a hybrid's forward and a layer stands nothing that need not be there
        own_forward = partial(self.model if head else self.model.base_model, **arguments)
        recording = Recording(input_ids, [((), {})] * self.num_layers, own_forward, inside)
        real: Any = self._owner._modules[self._attribute]
        if self._stand_ins is None or not all(s._real is layer for s, layer in zip(self._stand_ins, real)):
            self._stand_ins = nn.ModuleList([_StandIn(layer, i, self) for i, layer in enumerate(real)])
        self._owner._modules[self._attribute] = self._stand_ins
        self._real, self._open = real, recording
        heads = self._places_of_head() if head_input else []
        for owner, name in heads:
            owner._modules[name] = _HeadStandIn(owner._modules[name], recording)  # type: ignore[arg-type]
        cache = arguments[self.cache_argument]
        try:
            yield recording
            self._check(recording)
            if isinstance(cache, CountedPasses):
                # after the pass: while it runs, the component asks how many tokens are before these
                cache.seen_tokens += input_ids.shape[1]
        finally:
            self._owner._modules[self._attribute] = real
            self._real = self._open = None
            for owner, name in heads:
                owner._modules[name] = owner._modules[name]._real  # type: ignore[union-attr, assignment]

    def _places_of_head(self) -> list[tuple[nn.Module, str]]:
        head = self.model.get_output_embeddings()
        return [
            (owner, name)
            for owner in self.model.modules()
            for name, child in owner.named_children()
            if child is head and child is not None
        ]

    def _arguments(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        inputs_embeds: Tensor | None = None,
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
        if inputs_embeds is not None:
            arguments.update(input_ids=None, inputs_embeds=inputs_embeds)
        return arguments

    def splits(self, attention_mask: Tensor | None) -> bool:
        """Whether a batch has rows on both sides of the position where the rotary embedding changes.

        Its longest row would decide how the shorter ones are turned, which alone are turned otherwise.
        """
        if self.switch is None or attention_mask is None or attention_mask.shape[-1] <= self.switch:
            return False
        lengths = attention_mask.sum(-1)
        return int(lengths.min()) <= self.switch < int(lengths.max())

    def _check(self, recording: Recording) -> None:
        """Refuse a family that does not call its layers one after the other, on features that can be mixed."""
        hidden, expected = recording.first, (*recording.input_ids.shape, self.width)
        why = None
        if hidden is None or recording.inside is not None:
            why = "its last layer is not called after its first"
        elif hidden.shape != expected:
            # several streams, or a width of its own: nothing that another component's features could be mixed into
            why = f"its layers take {list(hidden.shape)} (expected {list(expected)})"
        if why is not None:
            raise ManticoreError(not_reproducible(self.model, why))

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
    lists: list[tuple[nn.Module, str]] = []
    inner: set[int] = set()
    # modules() goes from the outside in, so a list inside a layer is seen after the list of layers
    for owner in model.base_model.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth and id(owner) not in inner:
                lists.append((owner, name))
                inner.update(id(module) for module in child.modules())
    if len(lists) != 1:
        what = "no list" if not lists else f"{len(lists)} lists"
        raise ManticoreError(not_reproducible(model, f"it has {what} of {depth} decoder layers"))
    return lists[0]


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
