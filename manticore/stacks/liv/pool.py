"""The pool of 17 classes of operators that STAR's genomes choose from, and the layer of any legal code.

Classes 1 to 9 are operators by their codes (:mod:`manticore.stacks.liv.codes`), 10 to 17 the differential forms of the
first eight: ``LIV_a(x) - LIV_b(x)`` with separate weights (Thomas et al., "STAR", 2024).

Shapes: D width, H heads.
"""

from __future__ import annotations

from typing import Any

from manticore.making import sharing
from manticore.option_types import Count, Positive
from manticore.stacks.liv.codes import CODES, REPEATS, STATES, OperatorCode
from manticore.stacks.liv.differential import Differential
from manticore.stacks.liv.gated import (
    ChannelGate,
    ExplicitOperator,
    GroupedImplicitOperator,
    ImplicitOperator,
    MemorylessOperator,
)
from manticore.stacks.liv.low_rank import LinearOperator, PointwiseOperator, SoftmaxOperator, default_heads
from manticore.stacks.mamba import Mamba, Mamba2
from manticore.stacks.mixer import Mixer


def _heads(
    *, num_heads: Count | None = None, kernel_size: Count = 3, rotary: bool = True, rotary_base: Positive = 10000.0
) -> None:
    """What classes of attention take.

    Args:
        num_heads: H; None is heads of 64 channels, and at least 4.
        kernel_size: of the convolution on queries, keys and values, where there is one.
        rotary: whether positions are rotated in.
        rotary_base: of the rotations' wavelengths.
    """


def liv(
    width: int,
    positions: int,
    *,
    code: str = "12123",
    num_heads: Count | None = None,
    window: Count = 32,
    kernel_size: Count = 3,
    rotary: bool = True,
    rotary_base: Positive = 10000.0,
    expand: Count = 1,
    filter_order: Count = 16,
    inner_width: Count | None = None,
) -> Mixer:
    """The operator of a code of five integers.

    Args:
        width: D.
        positions: the longest sequence, for implicit kernels.
        code: featurizer 1-9, token mixing 1-4, sparsity 1-2, non-linearity 1-4, channel mixing 1-3.
        num_heads: H where channels are grouped; None is heads of 64 channels, and at least 4.
        window: tokens before the current one that a banded operator sees; the same for all layers of a stack.
        kernel_size: of explicit kernels.
        rotary: whether low-rank operators with a memory of all tokens rotate positions in.
        rotary_base: of the rotations' wavelengths.
        expand: inner width of recurrences by D.
        filter_order: hidden units of the network that writes implicit kernels.
        inner_width: hidden units of memoryless operators; None is 8/3 D, rounded up to a multiple of 16.

    Raises:
        ManticoreError: a code that is not legal, by position; heads that do not fit the width.
    """
    read = OperatorCode.read(code)
    heads = {1: width, 2: 1, 3: num_heads or default_heads(width)}[read.channel_mixing]
    if read.token_mixing == 2:
        options: dict[str, Any] = {
            "num_heads": heads,
            "repeat": REPEATS.get(read.featurizer, 1),
            "kernel_size": kernel_size if read.featurizer == 2 else None,
        }
        if read.nonlinearity == 1 and read.sparsity == 1:
            return LinearOperator(width, **options)
        # a head of one channel has nothing to rotate
        options.update(rotary=rotary and heads < width, rotary_base=rotary_base)
        options["window"] = window if read.sparsity == 2 else None
        if read.nonlinearity == 2:
            return SoftmaxOperator(width, **options)
        return PointwiseOperator(width, nonlinearity=read.nonlinearity, **options)
    if read.token_mixing == 4:
        states = STATES[read.featurizer]
        if read.channel_mixing == 1:
            return Mamba(width, positions, expand=expand, state_size=states)
        return Mamba2(width, positions, expand=expand, state_size=states, num_heads=heads)
    gate = {"nonlinearity": read.nonlinearity}
    if read.featurizer == 7:
        return ExplicitOperator(width, positions, groups=heads, kernel_size=kernel_size, **gate)
    if read.featurizer == 8 and read.channel_mixing == 1:
        return ImplicitOperator(width, positions, filter_order=filter_order, **gate)
    if read.featurizer == 8:
        return GroupedImplicitOperator(width, positions, num_groups=heads, filter_order=filter_order, **gate)
    if read.channel_mixing == 1:
        return ChannelGate(width, positions, **gate)
    return MemorylessOperator(width, positions, inner_width=inner_width, **gate)


@sharing(_heads)
def sa_1(width: int, positions: int, **options: Any) -> Mixer:
    """Softmax attention with plain queries, keys and values: SA-1, 12123."""
    return liv(width, positions, code=CODES["sa-1"], **options)


@sharing(_heads)
def sa_2(width: int, positions: int, **options: Any) -> Mixer:
    """The same behind a short convolution: SA-2, 22123."""
    return liv(width, positions, code=CODES["sa-2"], **options)


@sharing(_heads)
def sa_3(width: int, positions: int, **options: Any) -> Mixer:
    """Softmax attention with keys and values repeated 4 times: SA-3, 32123."""
    return liv(width, positions, code=CODES["sa-3"], **options)


@sharing(_heads)
def sa_4(width: int, positions: int, **options: Any) -> Mixer:
    """Softmax attention with keys and values repeated twice: SA-4, 42123."""
    return liv(width, positions, code=CODES["sa-4"], **options)


def rec_1(width: int, positions: int, *, expand: Count = 1) -> Mixer:
    """A selective recurrence with 16 states per channel: Rec-1, 54111.

    Args:
        width: D.
        positions: unused.
        expand: inner width by D.
    """
    return liv(width, positions, code=CODES["rec-1"], expand=expand)


def rec_2(width: int, positions: int, *, expand: Count = 1) -> Mixer:
    """A selective recurrence with 2 states per channel: Rec-2, 64111.

    Args:
        width: D.
        positions: unused.
        expand: inner width by D.
    """
    return liv(width, positions, code=CODES["rec-2"], expand=expand)


def gconv_1(width: int, positions: int, *, kernel_size: Count = 3) -> Mixer:
    """The short gated convolution, no activation and no bias: GConv-1, 73111.

    Args:
        width: D.
        positions: unused.
        kernel_size: tokens that a filter reaches over.
    """
    return liv(width, positions, code=CODES["gconv-1"], kernel_size=kernel_size)


def gconv_2(width: int, positions: int, *, filter_order: Count = 16) -> Mixer:
    """A gated convolution as long as the sequence, its kernel written by a network: GConv-2, 83111.

    Args:
        width: D.
        positions: the longest sequence.
        filter_order: hidden units of the network.
    """
    return liv(width, positions, code=CODES["gconv-2"], filter_order=filter_order)


def gmemless(width: int, positions: int, *, inner_width: Count | None = None) -> Mixer:
    """SwiGLU: GMemless, 91142.

    Args:
        width: D.
        positions: unused.
        inner_width: hidden units; None is 8/3 D, rounded up to a multiple of 16.
    """
    return liv(width, positions, code=CODES["gmemless"], inner_width=inner_width)


@sharing(sa_1)
def diff_sa_1(width: int, positions: int, **options: Any) -> Mixer:
    """SA-1 minus another SA-1."""
    return Differential(sa_1(width, positions, **options), sa_1(width, positions, **options))


@sharing(sa_2)
def diff_sa_2(width: int, positions: int, **options: Any) -> Mixer:
    """SA-2 minus another SA-2."""
    return Differential(sa_2(width, positions, **options), sa_2(width, positions, **options))


@sharing(sa_3)
def diff_sa_3(width: int, positions: int, **options: Any) -> Mixer:
    """SA-3 minus another SA-3."""
    return Differential(sa_3(width, positions, **options), sa_3(width, positions, **options))


@sharing(sa_4)
def diff_sa_4(width: int, positions: int, **options: Any) -> Mixer:
    """SA-4 minus another SA-4."""
    return Differential(sa_4(width, positions, **options), sa_4(width, positions, **options))


@sharing(rec_1)
def diff_rec_1(width: int, positions: int, **options: Any) -> Mixer:
    """Rec-1 minus another Rec-1."""
    return Differential(rec_1(width, positions, **options), rec_1(width, positions, **options))


@sharing(rec_2)
def diff_rec_2(width: int, positions: int, **options: Any) -> Mixer:
    """Rec-2 minus another Rec-2."""
    return Differential(rec_2(width, positions, **options), rec_2(width, positions, **options))


@sharing(gconv_1)
def diff_gconv_1(width: int, positions: int, **options: Any) -> Mixer:
    """GConv-1 minus another GConv-1."""
    return Differential(gconv_1(width, positions, **options), gconv_1(width, positions, **options))


@sharing(gconv_2)
def diff_gconv_2(width: int, positions: int, **options: Any) -> Mixer:
    """GConv-2 minus another GConv-2."""
    return Differential(gconv_2(width, positions, **options), gconv_2(width, positions, **options))
