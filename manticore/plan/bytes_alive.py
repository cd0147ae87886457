"""Counts bytes alive, their peak and FLOPs while operators run on tensors without data."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from manticore.flops import operator_flops


class BytesAlive(TorchDispatchMode):
    """Every storage that an operator makes counts until nothing refers to it any more, the autograd graph included.

    What an operator uses for itself and frees before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """The most there were since :meth:`begin`."""
        self.flops = 0
        """Of everything so far."""
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def begin(self) -> int:
        """Start a new peak; returns the bytes alive."""
        # cycles, such as an exception and its frames, must not be freed while something is measured
        gc.collect(0)
        self.peak = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.flops += operator_flops(func, args, kwargs, out)
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._add(value)
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        weakref.finalize(storage, self._sub, size)

    def _sub(self, size: int) -> None:
        self.now -= size


def tensor_bytes(tensors: Any) -> int:
    """Bytes of the tensors in any nesting of containers; each counts, shared or not."""
    return sum(t.numel() * t.element_size() for t in tree_iter(tensors) if isinstance(t, torch.Tensor))
