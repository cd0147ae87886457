"""What the pieces of a hybrid cost, each measured by itself on tensors without data: forward and backward.

A piece is the embeddings of a component, a layer, what joins the components at a boundary, or heads and loss. Its
bytes are levels above the bytes that are alive when its forward, or its backward, begins.
Letters: B batch, T tokens, K components, N blocks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from manticore.components.runner import Recording
from manticore.flops import counted_flops
from manticore.hybrid.mixing import Features, Mixing
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.plan.bytes_alive import BytesAlive, tensor_bytes
from manticore.training.modes import recomputed_activations


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
    """The layer kind that the piece is, for sharding; empty for what is no layer."""


@contextmanager
def without_data(mode: FakeTensorMode, flops: bool) -> Iterator[tuple[BytesAlive, Callable[[], int]]]:
    """Tensors made inside have shapes only; gives the bytes alive, and a function that says the FLOPs so far.

    Args:
        mode: of tensors without data; one for all, since the first operators in a mode take long.
        flops: whether these are counted, which makes operators several times slower.
    """
    # collected between pieces only, the youngest objects alone
    gc.collect(0)
    gc.disable()
    with ExitStack() as stack:
        stack.callback(gc.enable)
        stack.enter_context(mode)
        alive = stack.enter_context(BytesAlive())
        yield alive, stack.enter_context(counted_flops()).get_total_flops if flops else lambda: 0


class Bench:
    """Measures the pieces of a supernet in one setting; each piece once.

    To be used inside the mode of :func:`without_data` that the supernet was copied in.

    Args:
        hybrid: a supernet without data, with ``requires_grad`` as it shall be.
        kinds: per component and layer the index of the layer that stands for it.
        alive: of the mode.
        flops: of the mode.
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
        alive: BytesAlive,
        flops: Callable[[], int],
        *,
        batch_size: int,
        length: int,
        bf16: bool = False,
        checkpointing: bool = False,
        backward: bool = True,
    ) -> None:
        self.hybrid, self.kinds, self.alive, self.flops = hybrid, kinds, alive, flops
        self.batch_size, self.length = batch_size, length
        self.bf16, self.checkpointing, self.backward = bf16, checkpointing, backward
        self.runners = [runner for runner in hybrid.runners if runner is not None]
        self.edges = hybrid.config.boundaries
        self.input_ids = torch.zeros(batch_size, length, dtype=torch.long)
        self._layers: dict[tuple[int, int, bool], tuple[Piece, Tensor]] = {}
        self._embedded: dict[int, tuple[Piece, Recording]] = {}

    def parts(self, mixing: Mixing) -> list[Part]:
        """All pieces of a hybrid with this mixing, in the order of its forward pass, heads and loss last."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.backward))
            if self.bf16:
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            if self.checkpointing and self.backward:
                stack.enter_context(recomputed_activations(self.hybrid))
            return self._parts(mixing)

    def _parts(self, mixing: Mixing) -> list[Part]:
        active, embedded = mixing.active(), sorted(mixing.embedded())
        recordings = {k: self._embed(k) for k in sorted(set(embedded).union(*active))}
        parts = [Part(recordings[k][0]) for k in embedded]
        features: Features = {k: recordings[k][1].hidden for k in embedded}
        for n, running in enumerate(active):
            targets = sorted(running)
            piece, entered = self._measure(partial(mixing.enter, n, targets=targets), features)
            parts.append(Part(piece))
            features = dict(entered)
            for k in targets:
                waiting = _needing(value for m, value in features.items() if m != k)
                for index in range(self.edges[k][n], self.edges[k][n + 1]):
                    piece, features[k] = self._layer(k, index, features[k], recordings[k][1])
                    parts.append(Part(piece, waiting, f"{k}.{self.kinds[k][index]}"))
        parts.append(Part(self._finish(mixing, features, {k: r for k, (_, r) in recordings.items()})))
        return parts

    def _embed(self, k: int) -> tuple[Piece, Recording]:
        if k not in self._embedded:
            recordings: list[Recording] = []

            def run(_: Features) -> Features:
                recordings[:] = [self.runners[k].record(self.input_ids)]
                return {k: recordings[0].hidden}

            piece, _ = self._measure(run, {})
            self._embedded[k] = piece, recordings[0]
        return self._embedded[k]

    def _layer(self, k: int, index: int, hidden: Tensor, recording: Recording) -> tuple[Piece, Tensor]:
        key = k, self.kinds[k][index], hidden.requires_grad
        if key not in self._layers:
            runner = self.runners[k]
            piece, out = self._measure(
                lambda inputs: {k: runner.run(recording, inputs[k], index, index + 1)}, {k: hidden}
            )
            self._layers[key] = piece, out[k]
        return self._layers[key]

    def _finish(self, mixing: Mixing, features: Features, recordings: dict[int, Recording]) -> Piece:
        heads = sorted(mixing.active()[-1])
        targets = torch.zeros(self.batch_size * self.length, dtype=torch.long)
        rows = self.hybrid.config.vocab_size

        def run(inputs: Features) -> Features:
            logits = mixing.logits(inputs, lambda k, hidden: self.runners[k].finish(recordings[k], hidden)[..., :rows])
            if not self.backward:
                return {0: logits}
            return {0: functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum") / len(targets)}

        piece = self._measure(run, features)[0]
        # the hybrid's one pass of each component, which `finish` makes for a second time
        again = sum(self._embedded[k][0].forward_flops for k in heads)
        return replace(piece, forward_flops=piece.forward_flops - again)

    def _measure(self, run: Callable[[Features], Features], given: Features) -> tuple[Piece, Features]:
        """One piece on fresh inputs like `given`; also returns fresh tensors like its outputs."""
        inputs = {k: torch.empty_like(value).requires_grad_(value.requires_grad) for k, value in given.items()}
        trained = [p for p in self.hybrid.parameters() if p.requires_grad]
        begun, flops = self.alive.begin(), self.flops()
        outputs = run(inputs)
        kept, forward_peak = self.alive.now - begun, self.alive.peak - begun
        forward_flops, backward_flops, backward_peak = self.flops() - flops, 0, 0
        roots = [value for value in outputs.values() if value.requires_grad]
        fresh = {k: torch.empty_like(v).detach().requires_grad_(v.requires_grad) for k, v in outputs.items()}
        out = _needing(roots)
        del outputs
        gradients: dict[Any, float] = {}
        if roots:
            incoming = [torch.empty_like(value) for value in roots]
            begun, flops = self.alive.begin(), self.flops()
            torch.autograd.backward(roots, incoming)
            backward_peak = self.alive.peak - begun
            backward_flops = self.flops() - flops
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
        Part(a.piece.between(b.piece, share), a.waiting + (b.waiting - a.waiting) * share, a.unit)
        for a, b in zip(small, large)
    ]
