"""Names of rows of a comparison that are not a single parent, and which ensembles there are."""

from __future__ import annotations

from collections.abc import Sequence

SUPERNET = "supernet (soft)"
HYBRID = "hybrid"
_ENSEMBLE = "ensemble"
_LARGER = "larger: "

OF_TEXT = ("probabilities", "bayes")
"""Outputs of the ensembles of a comparison on text where none are named: those that need no training."""
ELSEWHERE = ("logits",)
"""The same where heads are fresh, or targets may not be the next token."""


def ensembles(wanted: bool | Sequence[str], *, of_text: bool) -> Sequence[str]:
    """The outputs of the ensembles that are asked for.

    Args:
        wanted: names of them; True for those that need no training, False for none.
        of_text: whether models read text and predict its next token.
    """
    if isinstance(wanted, bool):
        return (OF_TEXT if of_text else ELSEWHERE) if wanted else ()
    return wanted


def ensemble_row(output: str) -> str:
    """The row of the ensemble with an output."""
    return f"{_ENSEMBLE} ({output})"


def is_ensemble(row: str) -> bool:
    """Whether a row is one of those; in older records there was one without a name."""
    return row == _ENSEMBLE or row.startswith(f"{_ENSEMBLE} (")


def larger_row(name: str) -> str:
    """The row of a larger single model, which stands beside the others without being a parent."""
    return f"{_LARGER}{name}"


def is_larger(row: str) -> bool:
    """Whether a row is one of those."""
    return row.startswith(_LARGER)


def is_made(row: str) -> bool:
    """Whether a row is of something made of several models."""
    return is_ensemble(row) or row in (SUPERNET, HYBRID)
