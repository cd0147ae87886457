"""The levels below a backbone genome: the operator of a LIV, five integers, and its featurizer, some for each group.

A feature group is one of the factors that an operator's T is made of: C, what a token asks with; B, what it is found
by; V, what is mixed; K, a kernel. It is made from the input by a token mixing and a channel mixing of its own.
Featurizers are not searched: an operator's first integer names one of nine.

Source: Thomas et al., "STAR: Synthesis of Tailored Architectures", 2024, appendix; the sizes of 5 and 6 are those of
Mamba's state, d x 16, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from manticore.stacks.genome_integers import Genome
from manticore.stacks.liv.codes import CODES, REPEATS, STATES, OperatorCode

_DIFFERENTIAL = "diff-"


class FeatureGroup(NamedTuple):
    """How one factor of an operator is made from the input; integers as in the operator's code."""

    name: str
    token_mixing: int = 1
    """1 diagonal, 3 scaled Toeplitz: a convolution."""
    sparsity: int = 1
    """2 banded: a convolution over few tokens."""
    nonlinearity: int = 1
    channel_mixing: int = 2
    """1 diagonal, 2 dense."""
    expansion: float = 1
    """Its width by that of the model, before it is repeated."""
    repeat: int = 1
    """Copies along channels."""


_PLAIN = tuple(map(FeatureGroup, "CBV"))


def _repeated(times: int) -> tuple[FeatureGroup, ...]:
    c, *others = _PLAIN
    return (c, *(group._replace(expansion=1 / times, repeat=times) for group in others))


def _recurrent(states: int) -> tuple[FeatureGroup, ...]:
    mixed = [group._replace(token_mixing=3, sparsity=2, nonlinearity=4) for group in _PLAIN]
    return tuple(group if group.name == "V" else group._replace(expansion=states) for group in mixed)


_KERNEL = FeatureGroup("K", token_mixing=3, channel_mixing=1)

FEATURIZERS: dict[int, tuple[FeatureGroup, ...]] = {
    1: _PLAIN,
    2: tuple(group._replace(token_mixing=3, sparsity=2) for group in _PLAIN),
    **{featurizer: _repeated(times) for featurizer, times in REPEATS.items()},
    **{featurizer: _recurrent(states) for featurizer, states in STATES.items()},
    7: (*_PLAIN, _KERNEL._replace(sparsity=2)),
    8: (*_PLAIN, _KERNEL),
    9: (FeatureGroup("C"), FeatureGroup("V")),
}
"""The first integer of an operator → its feature groups."""


@dataclass(frozen=True)
class Levels:
    """A LIV at the levels below the backbone."""

    operator: OperatorCode
    featurizer: tuple[FeatureGroup, ...]
    differential: bool
    """Whether two such operators with weights of their own are subtracted."""


def levels(genome: Genome | str) -> list[Levels]:
    """The operators and featurizers of a genome, from the bottom to the top.

    Raises:
        ManticoreError: text that is no genome.
    """
    genome = Genome.read(genome) if isinstance(genome, str) else genome
    found = []
    for liv in genome.livs:
        code = CODES.get(liv.name.removeprefix(_DIFFERENTIAL), str(liv.operator))
        operator = OperatorCode.read(code)
        found.append(Levels(operator, FEATURIZERS[operator.featurizer], liv.name.startswith(_DIFFERENTIAL)))
    return found
