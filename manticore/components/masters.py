"""Half-precision weights held in float32 for a while, and rounded back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from manticore.components.rebuilding import named_tensors


def floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and buffers, shared ones under each of their names."""
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point():
            yield name, tensor


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers of this type are too coarse to be moved by small steps."""
    return dtype in (torch.bfloat16, torch.float16)


def convert(tensor: Tensor, dtype: torch.dtype) -> None:
    """Give a parameter or buffer another type in place, so that every module and optimizer still knows it."""
    # a gradient of the type before would not fit
    tensor.grad = None
    tensor.data = tensor.data.to(dtype)


@contextmanager
def held_in_float32(module: nn.Module) -> Iterator[None]:
    """Inside, what is in half precision is in float32; afterwards it is rounded to its type."""
    kept = [(tensor, tensor.dtype) for _, tensor in floating(module) if is_half(tensor.dtype)]
    for tensor, _ in kept:
        convert(tensor, torch.float32)
    try:
        yield
    finally:
        for tensor, dtype in kept:
            convert(tensor, dtype)
