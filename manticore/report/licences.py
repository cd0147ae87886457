"""Which licence a hybrid may carry, given those of its parents.

A hybrid contains its parents' weights, so every parent's terms hold for it. Only licences that lie on one line,
each asking for all that the one before asks, can be summed up by the strictest; anything else is ``other``.
"""

from __future__ import annotations

from collections.abc import Sequence

OTHER = "other"

_FROM_FREE_TO_STRICT = (
    "cc0-1.0",
    "unlicense",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "apache-2.0",
    "mpl-2.0",
    "lgpl-3.0",
    "gpl-3.0",
    "agpl-3.0",
)


def strictest(licences: Sequence[str | None]) -> tuple[str, str]:
    """The licence for the card (an id of the Hugging Face Hub) and a sentence that explains it."""
    known = [licence.strip().lower() for licence in licences if licence and licence.strip()]
    if not known or len(known) < len(licences):
        return (
            OTHER,
            "The licence of at least one parent is not known: ask its authors before you pass this model on.",
        )
    if len(set(known)) == 1:
        return known[0], "All parents have this licence."
    if all(licence in _FROM_FREE_TO_STRICT for licence in known):
        return max(known, key=_FROM_FREE_TO_STRICT.index), "This is the strictest of the parents' licences."
    return OTHER, "The parents' licences cannot be put in one order: the terms of each of them hold together."
