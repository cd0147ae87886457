"""What the pieces of a hybrid cost, each measured by itself on tensors without data: forward and backward.

A piece is the embeddings of a component, a layer, what joins the components at a boundary, or heads and loss. Its
bytes are levels above the bytes that are alive when its forward, or its backward, begins.
Shapes: B batch, T tokens, K components, N blocks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from manticore.components.runner import Recording
from manticore.hybrid.inputs import Part as Tokens
from manticore.hybrid.mixing import Features, Mixing
from manticore.hybrid.modeling import ManticoreForCausalLM, through_blocks
from manticore.hybrid.outputs import Read
from manticore.hybrid.path import PathMixing
from manticore.modes import recomputed_activations
from manticore.plan.bytes_alive import BytesAlive, tensor_bytes
from manticore.plan.skeleton import path_mixing
from manticore.training.budget import copy_without_data


@dataclass(frozen=True)
class Piece:
    """Costs of one piece; FLOPs, and bytes."""

    forward_flops: float = 0
    backward_flops: float = 0
    kept: float = 0
    """What stays alive after the forward, for the backward or the next piece."""
    forward_peak: float = 0
    backward_peak: float = 0
    """Above the level at which its backward begins, which includes the gradients of its outputs."""
    gradients: Mapping[Any, float] = field(default_factory=dict)
    """Gradient bytes of each trained parameter that the piece uses, by an identity of the parameter."""
    out: float = 0
    """Outputs that need a gradient: what their gradients take in the backward."""

    def between(self, other: Piece, share: float) -> Piece:
        """This piece at another batch size: costs grow in proportion between two measured sizes."""

        def mix(a: float, b: float) -> float:
            return a + (b - a) * share

        return Piece(
            mix(self.forward_flops, other.forward_flops),
            mix(self.backward_flops, other.backward_flops),
            mix(self.kept, other.kept),
            mix(self.forward_peak, other.forward_peak),
            mix(self.backward_peak, other.backward_peak),
            self.gradients,
            mix(self.out, other.out),
        )


@dataclass(frozen=True)
class Part:
    """A piece at its place in the forward pass."""

    piece: Piece
    waiting: float = 0
    """Features of the other components at that place, whose gradients wait in the backward."""
    unit: str = ""
    """The layer kind that the piece is, for sharding; empty for what is not a layer."""
    layer: tuple[int, int] | None = None
    """The component that holds the layer's weights and its index there; components may share weights."""


class Bench:
    """Measures the pieces of a supernet in one setting; each piece once.

    Args:
        hybrid: a supernet on the meta device, with ``requires_grad`` as it shall be.
        kinds: per component and layer the index of the layer that stands for it.
        mode: of tensors without data; one for all, since the first operators in a mode take long.
        batch_size: B.
        length: T.
        bf16: forward passes compute in bfloat16 where that is safe.
        checkpointing: activations are recomputed in the backward pass.
        backward: False measures forward passes only, as in an evaluation.
    """

    def __init__(
        self,
        hybrid: ManticoreForCausalLM,
        kinds: Sequence[Sequence[int]],
        mode: FakeTensorMode,
        *,
        batch_size: int,
        length: int,
        bf16: bool = False,
        checkpointing: bool = False,
        backward: bool = True,
    ) -> None:
        self.kinds, self.mode, self.alive = kinds, mode, BytesAlive()
        self.batch_size, self.length = batch_size, length
        self.bf16, self.checkpointing, self.backward = bf16, checkpointing, backward
        # what is made inside is seen as being there before anything is measured
        with mode, self.alive:
            self.hybrid = copy_without_data(hybrid)
            self.input_ids = torch.zeros(batch_size, length, dtype=torch.long)
        self.runners = [runner for runner in self.hybrid.runners if runner is not None]
        self.edges = self.hybrid.config.boundaries
        self._layers: dict[tuple[int, int, bool], tuple[Piece, Tensor]] = {}
        self._embedded: dict[int, tuple[Piece, Recording]] = {}
        self._entered: dict[Any, tuple[Piece, Features]] = {}
        self._finished: dict[Any, Piece] = {}

    def mixing(self, path: Sequence[int] | None) -> Mixing:
        """What joins the segments: of the supernet, or of a path through it."""
        with self.mode, self.alive:
            return self.hybrid.mixing if path is None else path_mixing(self.hybrid, path)

    def parts(self, mixing: Mixing) -> list[Part]:
        """All pieces of a hybrid with this mixing, in the order of its forward pass, heads and loss last."""
        # collected between pieces only, the youngest objects alone
        gc.collect(0)
        gc.disable()
        with ExitStack() as stack:
            stack.callback(gc.enable)
            stack.enter_context(self.mode)
            stack.enter_context(self.alive)
            stack.enter_context(torch.set_grad_enabled(self.backward))
            if self.bf16:
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            if self.checkpointing and self.backward:
                stack.enter_context(recomputed_activations(self.hybrid))
            return self._parts(mixing)

    def _parts(self, mixing: Mixing) -> list[Part]:
        route, owners = mixing.route(), self.hybrid.config.owners
        recordings = {k: self._embed(k) for k in route.used}
        parts = [Part(recordings[k][0]) for k in route.embedded]
        beside: Features = {}

        def enter(n: int, features: Features, components: Sequence[int]) -> Features:
            piece, entering = self._enter(mixing, n, list(components), features)
            parts.append(Part(piece))
            beside.clear()
            beside.update(entering)
            return entering

        def layers(n: int, k: int, hidden: Tensor) -> Tensor:
            waiting = _needing(value for m, value in beside.items() if m != k)
            for index in range(self.edges[k][n], self.edges[k][n + 1]):
                piece, hidden = self._layer(k, index, hidden, recordings[k][1])
                parts.append(Part(piece, waiting, f"{k}.{self.kinds[k][index]}", (owners[k], index)))
            beside[k] = hidden
            return hidden

        through_blocks(
            route.blocks,
            lambda: {k: recordings[k][1].hidden for k in route.embedded},
            enter,
            lambda n, k: partial(layers, n, k),
            lambda features: parts.append(Part(self._heads(mixing, features))),
        )
        return parts

    def _heads(self, mixing: Mixing, features: Features) -> Piece:
        heads = mixing.route().blocks[self.hybrid.config.head_block]
        flags = tuple((k, value.requires_grad) for k, value in features.items())
        key = isinstance(mixing, PathMixing), tuple(heads), flags
        if key not in self._finished:
            self._finished[key] = self._finish(mixing, features, heads)
        return self._finished[key]

    def _embed(self, k: int) -> tuple[Piece, Recording]:
        if k not in self._embedded:
            recordings: list[Recording] = []

            def run(_: Features) -> Features:
                recordings[:] = [self.runners[k].record(self.input_ids)]
                return {k: recordings[0].hidden}

            piece, _ = self._measure(run, {})
            self._embedded[k] = piece, recordings[0]
        return self._embedded[k]

    def _enter(self, mixing: Mixing, n: int, targets: list[int], features: Features) -> tuple[Piece, Features]:
        # boundaries between the same components cost the same
        flags = tuple((k, value.requires_grad) for k, value in features.items())
        key = isinstance(mixing, PathMixing), n > 0, tuple(targets), flags
        if key not in self._entered:
            self._entered[key] = self._measure(partial(mixing.enter, n, targets=targets), features, mixing)
        piece, entered = self._entered[key]
        # but each has projectors of its own
        own = {(n, index): size for index, size in enumerate(piece.gradients.values())}
        return replace(piece, gradients=own), dict(entered)

    def _layer(self, k: int, index: int, hidden: Tensor, recording: Recording) -> tuple[Piece, Tensor]:
        key = k, self.kinds[k][index], hidden.requires_grad
        if key not in self._layers:
            runner = self.runners[k]
            piece, out = self._measure(
                lambda inputs: {k: runner.run(recording, inputs[k], index, index + 1)}, {k: hidden}
            )
            self._layers[key] = piece, out[k]
        return self._layers[key]

    def _finish(self, mixing: Mixing, features: Features, heads: list[int]) -> Piece:
        targets = torch.zeros(self.batch_size * self.length, dtype=torch.long)
        rows = self.hybrid.config.vocab_size

        output = self.hybrid.output

        def run(inputs: Features) -> Features:
            logits: Features = {}
            features = mixing.head_inputs(inputs)
            recordings: dict[int, Recording] = {}
            for k, hidden in features.items():

                def middle(recording: Recording, k: int = k, hidden: Tensor = hidden) -> Tensor:
                    recordings[k] = recording
                    return hidden

                noting = {"head_input": output.reads_head_inputs}
                logits[k] = self.runners[k].logits(middle, self.input_ids, **noting)[..., :rows]
            read = {k: each.head_input for k, each in recordings.items() if each.head_input is not None}
            tokens = Tokens(self.input_ids, None, None)
            joined, _ = output(Read(logits, mixing.output_weights(), read, tokens, features=features))
            if not self.backward:
                return {0: joined}
            return {0: functional.cross_entropy(joined.flatten(0, 1).float(), targets, reduction="sum") / len(targets)}

        piece = self._measure(run, features)[0]
        # the hybrid's one pass of each component, which `head` makes for a second time
        again = sum(self._embedded[k][0].forward_flops for k in heads)
        return replace(piece, forward_flops=piece.forward_flops - again)

    def _measure(
        self, run: Callable[[Features], Features], given: Features, mixing: Mixing | None = None
    ) -> tuple[Piece, Features]:
        """One piece on fresh inputs like `given`; also returns fresh tensors like its outputs."""
        inputs = {k: torch.empty_like(value).requires_grad_(value.requires_grad) for k, value in given.items()}
        used = {*self.hybrid.parameters(), *(() if mixing is None else mixing.parameters())}
        trained = [p for p in used if p.requires_grad]
        begun, flops = self.alive.begin(), self.alive.flops
        outputs = run(inputs)
        kept, forward_peak = self.alive.now - begun, self.alive.peak - begun
        forward_flops, backward_flops, backward_peak = self.alive.flops - flops, 0, 0
        roots = [value for value in outputs.values() if value.requires_grad]
        fresh = {k: torch.empty_like(v).detach().requires_grad_(v.requires_grad) for k, v in outputs.items()}
        out = _needing(roots)
        del outputs
        gradients: dict[Any, float] = {}
        if roots:
            incoming = [torch.empty_like(value) for value in roots]
            begun, flops = self.alive.begin(), self.alive.flops
            torch.autograd.backward(roots, incoming)
            backward_peak = self.alive.peak - begun
            backward_flops = self.alive.flops - flops
            for parameter in trained:
                if parameter.grad is not None:
                    gradients[id(parameter)] = tensor_bytes(parameter.grad)
                    parameter.grad = None
        piece = Piece(forward_flops, backward_flops, kept, forward_peak, backward_peak, gradients, out)
        return piece, fresh


def _needing(values: Any) -> float:
    return float(sum(tensor_bytes(value) for value in values if value.requires_grad))


def scaled(small: Sequence[Part], large: Sequence[Part], share: float) -> list[Part]:
    """The parts at a batch size between two measured ones."""
    return [
        Part(a.piece.between(b.piece, share), a.waiting + (b.waiting - a.waiting) * share, a.unit, a.layer)
        for a, b in zip(small, large)
    ]
