"""Larger stacks after the pattern of a small one: layers stacked or stretched to a number of parameters.

With m the parameters of the small stack's layers at the target's width, M those wanted, h the length of a run of equal
layers (Composer, 2025, section 3.5 of its extrapolator):

    stack      floor(M / m) copies of the list, then a copy whose runs are ceil(h r / m) long, with r the rest of M
    stretch    every run ceil(h M / m) long

Shapes: D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal, TypeAlias

from manticore import registry
from manticore.components.weight_files import MOST_LAYERS
from manticore.errors import ManticoreError
from manticore.quantities import count
from manticore.stacks.configuration import StackConfig
from manticore.stacks.layer_entry import LayerEntry
from manticore.stacks.normalise import changed
from manticore.stacks.sizes import layer_parameters

How: TypeAlias = Literal["stack", "stretch"]

PROPORTION = 64
"""Width per layer of the Llama 3 family, which a larger stack gets where nobody gives its width."""
_HEAD_WIDTH = 64
_HEADS = ("num_heads", "num_kv_heads")
_INNER = ("inner_width", "expert_width")
_STEPS = (256, 64, 8)
_WIDTHS = 257
_TRIES = 32


def scaled(
    config: StackConfig,
    parameters: int,
    how: How = "stack",
    *,
    width: int | None = None,
    layer_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> StackConfig:
    """A larger stack after the pattern of a small one.

    Args:
        config: the small one; what of it is no layer and no width stays.
        parameters: of the layers and their norms, embeddings and head left out; the result has a little more, as runs
            are rounded up.
        how: ``"stack"`` repeats the list, for short ones; ``"stretch"`` makes its runs longer, for lists of 16 layers
            and more.
        width: D of the result; None: the one, in steps of 256 (64 or 8 where it is smaller), at which width ÷ layers
            comes nearest to 64.
        layer_options: layer name → options, beside and before those that :func:`widened` derives.

    Raises:
        ManticoreError: fewer parameters than the small stack has at that width, a width that a layer cannot have, or
            a stack with shared layers that is to be stretched.
    """
    if width is None:
        width = _proportionate_width(config, parameters, layer_options)
    wide = widened(config, width, layer_options)
    return stack(wide, parameters) if how == "stack" else stretch(wide, parameters)


def stack(config: StackConfig, parameters: int) -> StackConfig:
    """Copies of a list of layers, and a shortened one for the rest, at the same width.

    Layers that share something and those that they share it with are in the shortened copy too; each copy shares
    within itself.

    Raises:
        ManticoreError: fewer parameters than the list has.
    """
    small = _checked(config, parameters)
    copies, rest = divmod(parameters, small)
    entries = config.entries
    layers = [_moved(entry, (copy * len(entries)).__add__) for copy in range(copies) for entry in entries]
    if rest:
        kept = _shortened(entries, rest, small)
        place = {old: len(layers) + new for new, old in enumerate(kept)}
        layers += [_moved(entries[old], place.__getitem__) for old in kept]
    return _with_layers(config, layers)


def stretch(config: StackConfig, parameters: int) -> StackConfig:
    """Every run of equal layers in proportion longer, at the same width.

    Raises:
        ManticoreError: fewer parameters than the list has, or layers that share something: which of the new layers
            would share it, the list does not say.
    """
    small = _checked(config, parameters)
    entries = config.entries
    sharing = next((index for index, entry in enumerate(entries) if entry.sharing), None)
    if sharing is not None and parameters != small:
        raise ManticoreError(
            f"scale: layers[{sharing}] shares with a lower layer, and stretching does not say which of the new ones "
            "share. Fix: how='stack'"
        )
    layers = [entry for entry, length in runs(entries) for _ in range(_ceil(length * parameters, small))]
    return _with_layers(config, layers)


def runs(entries: Sequence[Any]) -> list[tuple[Any, int]]:
    """Equal neighbours of a list of layers, each with how often it stands there."""
    return [(entry, len(list(same))) for entry, same in groupby(entries)]


def widened(
    config: StackConfig, width: int, layer_options: Mapping[str, Mapping[str, Any]] | None = None
) -> StackConfig:
    """The same list of layers at another width.

    Heads become more, each kind by the same factor, until they are 64 wide; hidden widths that are given grow in
    proportion; all other options stay.

    Args:
        config: the stack.
        width: D.
        layer_options: layer name → options that win over these.

    Raises:
        ManticoreError: a layer cannot have that width.
    """
    given = layer_options or {}
    names = config.layer_names
    for name in given:
        if name not in names:
            raise ManticoreError(
                f"scale: options for {name!r}, which is not a layer{registry.did_you_mean(name, names)}"
            )
    layers = [
        entry.with_options(
            {**_grown(entry.name, entry.options, config.hidden_size, width), **given.get(entry.name, {})}
        )
        for entry in config.entries
    ]
    return _with_layers(config, layers, hidden_size=width)


def _grown(name: str, options: Mapping[str, Any], old: int, new: int) -> dict[str, Any]:
    """The options of a layer at another width."""
    grown = dict(options)
    for key in _INNER:
        if options.get(key):
            grown[key] = max(1, round(options[key] * new / old))
    known = inspect.signature(registry.resolve("layer", name)).parameters
    heads = {key: options.get(key, known[key].default) for key in _HEADS if key in known}
    if all(isinstance(each, int) for each in heads.values()) and "num_heads" in heads:
        most = new // (_HEAD_WIDTH * heads["num_heads"])
        factor = next((k for k in range(most, 1, -1) if new % (k * heads["num_heads"]) == 0), 1)
        if factor > 1:
            grown.update({key: factor * each for key, each in heads.items()})
    return grown


def _proportionate_width(
    config: StackConfig, parameters: int, layer_options: Mapping[str, Mapping[str, Any]] | None
) -> int:
    """The width at which as many layers as ``parameters`` make of it come nearest to the usual proportion."""
    refused: ManticoreError | None = None
    for step in _STEPS:
        best: tuple[float, int] | None = None
        tries = _TRIES
        for width in range(step, _WIDTHS * step, step):
            try:
                small = layer_parameters(widened(config, width, layer_options))
            except ManticoreError as error:
                # heads that do not divide it; or what no width mends
                refused, tries = refused or error, tries - 1
                if best is None and not tries:
                    break
                continue
            if small > parameters:
                break
            layers = len(config.layer_names) * parameters / small
            proportion = width / layers / PROPORTION
            off = max(proportion, 1 / proportion)
            if best is not None and off > best[0]:
                break
            best = (off, width)
        if best is not None:
            return best[1]
    if refused is not None:
        raise refused
    raise ManticoreError(
        f"scale: no width at which these {len(config.layer_names)} layers have as few as {count(parameters)} "
        "parameters. Fix: more parameters, or a width"
    )


def _checked(config: StackConfig, parameters: int) -> int:
    """What the layers have; that is at most what is wanted, and not so little that it takes endless copies."""
    small = layer_parameters(config)
    if parameters < small:
        raise ManticoreError(
            f"scale: {parameters:,} parameters are fewer than the {small:,} that the {len(config.layer_names)} layers "
            f"have at width {config.hidden_size}. Fix: {small} parameters or more, or a smaller width"
        )
    if parameters // small * len(config.layer_names) > MOST_LAYERS:
        raise ManticoreError(
            f"scale: {count(parameters)} parameters would take more than {MOST_LAYERS:,} layers of width "
            f"{config.hidden_size}. Fix: a larger width"
        )
    return small


def _shortened(entries: Sequence[LayerEntry], rest: int, small: int) -> list[int]:
    """Which of the layers are in the last copy."""
    sources = {source for entry in entries for source in (entry.weights_of, entry.features_of)}
    kept, index = [], 0
    for _, length in runs(entries):
        run = range(index, index + length)
        least = _ceil(length * rest, small)
        tied = [each for each in run if each in sources or entries[each].sharing]
        free = [each for each in run if each not in tied]
        kept += sorted([*tied, *free[: max(0, least - len(tied))]])
        index += length
    return kept


def _moved(entry: LayerEntry, place: Callable[[int], int]) -> LayerEntry:
    """A layer whose lower layers have moved, each to its place."""
    weights, features = (None if old is None else place(old) for old in (entry.weights_of, entry.features_of))
    return replace(entry, weights_of=weights, features_of=features)


def _ceil(numerator: int, denominator: int) -> int:
    """Exactly: a share that is whole must not become one more for a rounding error."""
    return -(-numerator // denominator)


def _with_layers(config: StackConfig, layers: Sequence[LayerEntry], **settings: Any) -> StackConfig:
    return changed(config, layers=[entry.written for entry in layers], **settings)
