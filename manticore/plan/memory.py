"""Peak memory of a training step or an evaluation on one device, out of the pieces of a hybrid.

    level in the forward    weights + optimizer state + what the pieces before have kept
    level in the backward   the same + the gradients so far + the gradients of features that wait
    peak                    the highest (level + peak of the piece), or weights + optimizer state + all gradients

Data parallel, every device holds all of it and the buckets in which gradients are averaged, as large as these. Sharded
over n devices, each holds an n-th of the weights, gradients and optimizer state of the layers and what is not a layer,
and during a step also all that is not a layer, and two layers, in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.hybrid.shared_weights import parents_names
from manticore.plan.bytes_alive import tensor_bytes
from manticore.plan.pieces import Part

Strategy = Literal["data parallel", "sharded"]

ADAMW_TENSORS = 2
"""Tensors like a trained parameter that the optimizer keeps: mean and mean square of its gradient."""


@dataclass(frozen=True)
class Inventory:
    """Parameters of a supernet or of one path through it."""

    parameters: int
    trained: int
    weight_bytes: int
    trained_bytes: int
    rest_bytes: int
    """Weights that belong to no layer: embeddings, norms, heads, projectors."""
    rest_trained_bytes: int
    largest_layer_bytes: int


def inventory(
    hybrid: ManticoreForCausalLM, kinds: Sequence[Sequence[int]], mixing: nn.Module, path: Sequence[int] | None
) -> Inventory:
    """What a supernet holds, or what is kept of it when it is discretized to `path`.

    Args:
        hybrid: a supernet in which one layer of each kind stands for all of it.
        kinds: per component and layer the index of the layer that stands for it.
        mixing: of the supernet, or of the path.
        path: one component index per block; None: the supernet.
    """
    gates = hybrid.output.parameters() if path is None else ()
    rest: dict[object, nn.Parameter] = {id(p): p for p in (*mixing.parameters(), *gates)}
    layers: dict[object, nn.Parameter] = {}
    largest = 0
    owners = hybrid.config.owners
    for k, runner in enumerate(hybrid.runners):
        if runner is None or (path is not None and k not in path):
            continue
        inside = {id(p) for layer in runner.layers for p in layer.parameters()}
        dropped: set[int] = set()
        kept: set[int] = set()
        for module, stays in (
            (runner.model.get_input_embeddings(), path is None or path[0] == k),
            (runner.model.get_output_embeddings(), path is None or path[hybrid.config.head_block] == k),
        ):
            (kept if stays else dropped).update(() if module is None else {id(p) for p in module.parameters()})
        gone = inside | (dropped - kept)
        for parameter in runner.model.parameters():
            # in a path components share tables alone
            once = path is None or id(parameter) in kept
            if id(parameter) not in gone:
                rest[id(parameter) if once else (k, id(parameter))] = parameter
        edges = hybrid.config.boundaries[k]
        for n in range(hybrid.config.num_blocks):
            if path is not None and path[n] != k:
                continue
            for i in range(edges[n], edges[n + 1]):
                layer = runner.layers[kinds[k][i]]
                shared = parents_names(layer) if owners[k] != k else {}
                for name, parameter in layer.named_parameters():
                    layers[owners[k] if name in shared else k, i, name] = parameter
                largest = max(largest, tensor_bytes(list(layer.parameters())))
    everything = [*rest.values(), *layers.values()]
    trained = [p for p in everything if p.requires_grad]
    return Inventory(
        parameters=sum(p.numel() for p in everything),
        trained=sum(p.numel() for p in trained),
        weight_bytes=tensor_bytes(everything),
        trained_bytes=tensor_bytes(trained),
        rest_bytes=tensor_bytes(list(rest.values())),
        rest_trained_bytes=tensor_bytes([p for p in rest.values() if p.requires_grad]),
        largest_layer_bytes=largest,
    )


def training_peak(
    parts: Sequence[Part],
    held: Inventory,
    *,
    devices: int = 1,
    strategy: Strategy = "data parallel",
    accumulation: int = 1,
) -> float:
    """Bytes on each device at the highest point of a training step.

    Args:
        parts: the pieces, at the batch size of one device.
        held: the parameters.
        devices: how many share the work.
        strategy: how.
        accumulation: micro-batches per step; with more than one, gradients are there in the forward too.
    """
    state = held.weight_bytes + ADAMW_TENSORS * held.trained_bytes
    layer_share = 1.0
    if strategy == "sharded":
        layer_share = 1 / devices
        static = state / devices + held.rest_bytes + 2 * held.largest_layer_bytes
        gradients = (held.trained_bytes - held.rest_trained_bytes) / devices + held.rest_trained_bytes
    else:
        static = state + (held.trained_bytes if devices > 1 else 0)
        gradients = held.trained_bytes
    if accumulation > 1:
        static += gradients
    level, peak = _forward(parts, static)
    found = 0.0
    seen: set[object] = set()
    for part in reversed(parts):
        piece = part.piece
        if not piece.out and not piece.gradients:
            continue
        peak = max(peak, level + found + part.waiting + piece.out + piece.backward_peak)
        level -= piece.kept
        if accumulation == 1:
            new = {(part.layer, key): size for key, size in piece.gradients.items()}
            found += sum(size for key, size in new.items() if key not in seen) * (layer_share if part.unit else 1)
            seen |= new.keys()
    return max(peak, static + (gradients if accumulation == 1 else 0))


def evaluation_peak(parts: Sequence[Part], held: Inventory) -> float:
    """Bytes on one device at the highest point of an evaluation."""
    return _forward(parts, held.weight_bytes)[1]


def _forward(parts: Sequence[Part], static: float) -> tuple[float, float]:
    """The level after the forward pass, and its peak."""
    level = peak = static
    loose: dict[str, float] = {}
    for part in parts:
        piece, owner = part.piece, part.unit.partition(".")[0]
        peak = max(peak, level + sum(loose.values()) + piece.forward_peak)
        if piece.out or piece.gradients:
            level += piece.kept
        elif owner:
            # nothing of it is needed but its output, until the next one has read that
            loose[owner] = piece.kept
        else:
            loose = {"": piece.kept}
    return level, peak
