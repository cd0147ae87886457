"""Codes of operators: five integers that say how a layer mixes tokens and channels; the legal ones, and STAR's pool.

    y_i^a = sum_j sum_b T_ij^ab(x) x_j^b                                    (Thomas et al., "STAR", 2024)

1. featurizer, what T is made from: 1 queries, keys and values; 2 the same behind a short convolution; 3 and 4 as 1 with
   keys and values repeated 4 and 2 times; 5 and 6 a selective recurrence with 16 and 2 states; 7 an explicit kernel of
   3 tokens; 8 an implicit one as long as the sequence; 9 a gate and a value
2. token mixing, the pattern of T_ij over tokens: 1 diagonal, 2 low-rank, 3 scaled Toeplitz, 4 semi-separable
3. sparsity: 1 none, 2 banded (a sliding window)
4. non-linearity: 1 none, 2 softmax, 3 ReLU, 4 swish; of the scores (low-rank), else of the gate C
5. channel mixing: 1 diagonal, 2 dense, 3 grouped (heads)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from manticore.errors import ManticoreError

POSITIONS = ("featurizer", "token mixing", "sparsity", "non-linearity", "channel mixing")

_FAMILIES = (
    # featurizers, token mixing, sparsity, non-linearity, channel mixing
    ("12", "2", "12", "1234", "123"),
    # one head has no groups that keys could be repeated for
    ("34", "2", "12", "1234", "13"),
    ("56", "4", "1", "1", "123"),
    # a gate has no softmax over tokens; the kernel of 7 is a band already
    ("78", "3", "1", "134", "123"),
    ("9", "1", "1", "134", "12"),
)
LEGAL: tuple[str, ...] = tuple(sorted("".join(code) for family in _FAMILIES for code in product(*family)))
"""All legal codes of operators, in order."""

CODES: dict[str, str] = {
    "sa-1": "12123",
    "sa-2": "22123",
    "sa-3": "32123",
    "sa-4": "42123",
    "rec-1": "54111",
    "rec-2": "64111",
    "gconv-1": "73111",
    "gconv-2": "83111",
    "gmemless": "91142",
}
"""Name → code of classes 1 to 9."""

REPEATS = {3: 4, 4: 2}
"""Featurizer → how often keys and values are repeated."""
STATES = {5: 16, 6: 2}
"""Featurizer → states of each channel of its recurrence."""

POOL: tuple[str, ...] = (*CODES, *(f"diff-{name}" for name in CODES if name != "gmemless"))
"""The classes in the order of STAR's ids: ``POOL[id - 1]``."""


def is_operator(code: object) -> bool:
    """Whether five digits name a legal operator."""
    return str(code) in LEGAL


@dataclass(frozen=True)
class OperatorCode:
    """A legal code, taken apart."""

    featurizer: int
    token_mixing: int
    sparsity: int
    nonlinearity: int
    channel_mixing: int

    @classmethod
    def read(cls, code: str) -> OperatorCode:
        """From its five digits.

        Raises:
            ManticoreError: another number of digits, or a combination that is not legal: the first position at which
                it leaves the table, with what is legal there.
        """
        if len(code) != len(POSITIONS):
            raise ManticoreError(
                f"operator code {code!r} has {len(code)} digits (expected {len(POSITIONS)}: {', '.join(POSITIONS)}). "
                "Fix: for instance 12123"
            )
        for index, what in enumerate(POSITIONS):
            before = code[:index]
            legal = sorted({each[index] for each in LEGAL if each.startswith(before)})
            if code[index] not in legal:
                behind = f" behind {before}" if before else ""
                raise ManticoreError(
                    f"operator code {code!r}: position {index + 1}, {what}, is {code[index]!r} "
                    f"(expected {', '.join(legal)}{behind}). Fix: {before}{legal[0]}…"
                )
        return cls(*map(int, code))
