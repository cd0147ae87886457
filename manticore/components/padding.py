"""Keeps padding out of recurrent layers whose input map has a bias.

Mixers of the Mamba kind, and short convolutions, set what enters them to zero where there is padding, and then map it.
A bias of that map makes something of nothing, which the convolution behind it carries into the first real tokens: a
left-padded row gets other logits than the same row alone. Here the map's output is set to zero there, too.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

_MAP, _MASK = "in_proj", "attention_mask"


def keep_padding_out(layer: nn.Module) -> None:
    """Watch every mixer inside ``layer`` that is given a mask of padding and maps its input with a bias.

    A second call changes nothing.
    """
    for mixer in layer.modules():
        projection: Any = getattr(mixer, _MAP, None)
        watched = any(isinstance(hook, _NotesMask) for hook in mixer._forward_pre_hooks.values())
        if watched or getattr(projection, "bias", None) is None:
            continue
        arguments = list(inspect.signature(type(mixer).forward).parameters)
        if _MASK not in arguments:
            continue
        note = _NotesMask(arguments.index(_MASK) - 1)
        # not a context around the layer: with gradient checkpointing the mixer runs again, long after
        mixer.register_forward_pre_hook(note, with_kwargs=True)
        projection.register_forward_hook(_Silences(note))


class _NotesMask:
    """Remembers which mask its mixer was called with until the input is mapped."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.mask: Tensor | None = None

    def __call__(self, _mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get(_MASK, args[self.position] if len(args) > self.position else None)
        self.mask = given if isinstance(given, Tensor) and given.dim() == 2 else None


class _Silences:
    """Sets the mapped input ``[B, T, …]`` to zero where the mask ``[B, T]`` is."""

    def __init__(self, note: _NotesMask) -> None:
        self.note = note

    def __call__(self, _projection: nn.Module, _args: Any, output: Tensor) -> Tensor:
        mask, self.note.mask = self.note.mask, None
        if mask is None or mask.shape != output.shape[:2]:
            return output
        return output * mask[:, :, None].to(output.dtype)
