"""A FLOP counter that counts what torch's own gets wrong, and stops where nobody knows the count.

A multiply-add is 2 FLOPs. Matrix products, convolutions, Fourier transforms, triangular solves, attention and every
kernel with a registered formula count; element-wise work does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

from manticore.errors import ManticoreError

aten = torch.ops.aten
_PLAIN_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler"})
_PRODUCT = re.compile(r"(mm|mv|dot)_?$|attention")

Shape = Sequence[int]


def real_fft_flops(length: int) -> int:
    """FLOPs of one real Fourier transform, the usual estimate."""
    return round(2.5 * length * math.log2(length)) if length > 1 else 0


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Counts everything run inside; ask the counter for ``get_total_flops()``.

    Raises:
        ManticoreError: an operator was called whose FLOPs nobody has written down.
    """
    # the counter is inside: it takes composite operators apart before they are looked at
    with _KnownOperators(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        yield counter


def operator_flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """FLOPs of one call that a dispatch mode has seen below autograd; `out` is what it returned.

    Raises:
        ManticoreError: nobody has written down what the operator costs.
    """
    packet = func._overloadpacket
    if packet in _FORMULAS:
        formula = shape_wrapper(_FORMULAS[packet])
    elif packet in flop_registry:
        formula = flop_registry[packet]
    else:
        _check_known(func)
        return 0
    return int(formula(*args, **kwargs, out_val=out))


class _KnownOperators(TorchDispatchMode):
    """Stops at the first operator that the counter would take for free without knowing it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _check_known(func)
        return func(*args, **(kwargs or {}))


def _check_known(func: Any) -> None:
    packet = func._overloadpacket
    unknown = func.namespace not in _PLAIN_NAMESPACES or _PRODUCT.search(packet.__name__)
    if unknown and packet not in flop_registry and packet not in _FORMULAS:
        raise ManticoreError(
            f"budget: the FLOPs of operator {func} are unknown and would count as zero. "
            "Fix: register a formula with torch.utils.flop_counter.register_flop_formula"
        )


def _convolution_backward(grad: Shape, x: Shape, weight: Shape, *options: Any, **kwargs: Any) -> int:
    """Each of the gradients of input and weight takes as many multiply-adds as the convolution itself.

    torch's own formula counts the weight's gradient of a depthwise convolution as if all channels met all others.
    """
    transposed, wanted = options[4], options[7]
    return conv_flop_count(list(x), list(weight), list(grad), transposed=transposed) * (wanted[0] + wanted[1])


def _grouped_product(a: Shape, b: Shape, *options: Any, **kwargs: Any) -> int:
    """Products of groups of rows, the experts of a layer: every row of the 2-D side belongs to one group."""
    groups = a[0] if len(a) == len(b) == 3 else 1
    return 2 * groups * a[-2] * a[-1] * b[-1]


def _matrix_vector(matrix: Shape, vector: Shape, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _real_transform(x: Shape, dims: Sequence[int], *options: Any, out_shape: Shape, **kwargs: Any) -> int:
    """The usual estimate for a real Fourier transform along the last dimension, half that of a complex one."""
    real = max(x[dims[-1]], out_shape[dims[-1]])
    return prod(x) // x[dims[-1]] * real_fft_flops(real)


def _complex_transform(x: Shape, dims: Sequence[int], *options: Any, **kwargs: Any) -> int:
    return prod(x) // x[dims[-1]] * 2 * real_fft_flops(x[dims[-1]])


def _triangular_solve(matrix: Shape, right: Shape, *, left: bool = True, **kwargs: Any) -> int:
    """Half the multiply-adds of a product with the full matrix."""
    return prod(right) * matrix[-1]


def _attention(query: Shape, key: Shape, value: Shape, *options: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *options: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


_FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.convolution_backward: _convolution_backward,
    aten._grouped_mm: _grouped_product,
    aten._fft_r2c: _real_transform,
    aten._fft_c2r: _real_transform,
    aten._fft_c2c: _complex_transform,
    aten.linalg_solve_triangular: _triangular_solve,
    aten.mv: _matrix_vector,
    aten.dot: _matrix_vector,
}
