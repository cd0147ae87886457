"""Which tokens of one tokenizer say what the tokens of another say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.components.token_bytes import ROLES, TokenBytes

EXACT, ROLE, PIECES, NONE = "exact", "role", "pieces", "none"

# tells tokenizers apart that share a vocabulary but split or normalise text differently: case, digits, white space,
# code, composed and decomposed letters, ligatures, wide forms, scripts without spaces, four-byte characters
_PROBE = (
    "The 3 quick brown-foxes' café jumped:\n\tdef f(x):  return x**2 # 12345 §\u00a0日本\n\n\n"
    "  cafe\u0301 ﬁne ＡＢ don't I'LL naïve ÀÉ \u200b… 🙂 x=[1,2];\r\n        end   "
)


@dataclass(frozen=True)
class Matching:
    """Where the row of each token of the kept tokenizer comes from, in a table made for another tokenizer."""

    sources: tuple[tuple[int, ...], ...]
    """Per id: the other tokenizer's tokens. One is copied, several are averaged, none leaves the mean of all rows."""
    kinds: tuple[str | None, ...]
    """Per id: ``"exact"`` the same bytes, ``"role"`` the same special role, ``"pieces"`` cut into several tokens,
    ``"none"`` no match; None where the id has no token."""
    known: int
    """Rows of the other table that belong to tokens."""

    @property
    def coverage(self) -> float:
        """Share of the kept tokenizer's tokens whose row is another's own: exact, or by role."""
        counts = self.counts
        return (counts[EXACT] + counts[ROLE]) / max(1, sum(counts.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Tokens by kind."""
        found = Counter(self.kinds)
        return {kind: found[kind] for kind in (EXACT, ROLE, PIECES, NONE)}

    def to_dict(self) -> dict[str, Any]:
        """Counts and coverage."""
        return {"tokens": sum(self.counts.values()), **self.counts, "coverage": self.coverage}


def same_tokenizer(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether token ids mean the same: equal vocabularies, and a text of many kinds of characters split alike.

    What is put before or behind a text, such as a token that begins it, does not change what an id means.
    """
    if first.get_vocab() != second.get_vocab():
        return False
    one, other = (tokenizer(_PROBE, add_special_tokens=False).input_ids for tokenizer in (first, second))
    return one == other


def tokens_around(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a tokenizer puts around a text: the ids that an empty one has."""
    return list(tokenizer("").input_ids)


def match_tokens(kept: TokenBytes, other: TokenBytes) -> Matching:
    """Find, for every token of ``kept``, the tokens of ``other`` that say the same.

    In this order: a token for the same bytes, or a special token of the same name; for special tokens the one that
    plays the same role (end, beginning, padding, unknown); else what ``other`` cuts the token's text into. A token such
    as ``<0x41>`` that ``kept`` never uses, since it has one for ``A``, gets no match unless ``other`` has the like: a
    second copy would take half of the probability of ``A``.
    """
    sources: list[tuple[int, ...]] = [()] * kept.size
    kinds: list[str | None] = [None] * kept.size
    names = {name: index for index, name in reversed(other.special.items())}
    bytes_alone = {byte: index for index, byte in other.single.items()}
    used = set(kept.ordinary.values())
    to_cut: dict[int, bytes] = {}

    def settle(index: int, source: int | None, kind: str = EXACT) -> bool:
        if source is not None:
            sources[index], kinds[index] = (source,), kind
        return source is not None

    for index, name in kept.special.items():
        role = next((other.roles[r] for r in ROLES if kept.roles[r] == index and other.roles[r] is not None), None)
        if not (
            settle(index, names.get(name))
            or settle(index, role, ROLE)
            or settle(index, other.by_bytes.get(name.encode()))
        ):
            to_cut[index] = name.encode()
    for index, byte in kept.single.items():
        text = bytes([byte])
        if not settle(index, bytes_alone.get(byte)) and not (
            text not in used and settle(index, other.by_bytes.get(text))
        ):
            kinds[index] = NONE
    for index, text in kept.ordinary.items():
        if not settle(index, other.by_bytes.get(text)):
            to_cut[index] = text
    for index, pieces in zip(to_cut, other.cut(list(to_cut.values()))):
        sources[index], kinds[index] = pieces, PIECES if pieces else NONE
    return Matching(tuple(sources), tuple(kinds), other.size)
