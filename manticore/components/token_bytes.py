"""The tokens of a tokenizer as the bytes they stand for, whatever its family writes for them.

Byte-level BPE writes every byte as a printable character (a space becomes ``Ġ``), tokenizers in the manner of
SentencePiece write ``▁`` for a space and ``<0x0A>`` for a byte without a token of its own. As bytes both are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from manticore.errors import ManticoreError

ROLES = ("eos", "bos", "pad", "unk")
"""Special tokens with a meaning that tokenizers share; the first counts where one token plays several."""

_PREFIX = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_STRAY = re.compile("([\udc80-\udcff]+)")


def _printable() -> dict[str, int]:
    """Character → byte as byte-level BPE writes it: printable Latin-1 as it is, the others from U+0100 on, in order."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _printable()


class TokenBytes:
    """A tokenizer seen as a table of byte strings and special tokens.

    Args:
        tokenizer: a fast one, byte-level or with ``▁`` for a space.
        name: what errors call it.

    Raises:
        ManticoreError: a tokenizer of another kind, whose tokens cannot be read as bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "tokenizer") -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ManticoreError(
                f"combine: the tokenizer of {name} is a {type(tokenizer).__name__} without a tokenizer.json, whose "
                "tokens cannot be compared. Fix: save its fast version beside the checkpoint"
            )
        pipeline = json.loads(backend.to_str())
        byte_level = _is_byte_level(pipeline, name)
        vocabulary = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        self.size = max(vocabulary.values(), default=-1) + 1
        """One more than the largest id; there may be ids without a token."""
        self.special: dict[int, str] = {}
        """Id → name of the tokens that stand for no text."""
        self.ordinary: dict[int, bytes] = {}
        """Id → bytes of the tokens that stand for text."""
        self.single: dict[int, int] = {}
        """Id → byte of tokens like ``<0x0A>``, which are used only where no ordinary token fits."""
        specials = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        unknown = _unknown(pipeline["model"], vocabulary)
        if unknown is not None:
            specials.add(unknown)
        for token, index in sorted(vocabulary.items(), key=lambda item: item[1]):
            if index in specials:
                self.special[index] = token
            elif index in added:
                self.ordinary[index] = token.encode()
            elif byte_level:
                self.ordinary[index] = _from_printable(token)
            elif found := _BYTE.fullmatch(token):
                self.single[index] = int(found[1], 16)
            else:
                self.ordinary[index] = token.replace(_PREFIX, " ").encode()
        self.roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
        if self.roles["unk"] is None:
            self.roles["unk"] = unknown
        self.by_bytes: dict[bytes, int] = {}
        """Bytes → the token that a text would have for them."""
        later = [i for i in self.ordinary if i in added]
        for index in [*(i for i in self.ordinary if i not in added), *later]:
            self.by_bytes.setdefault(self.ordinary[index], index)
        for index, byte in self.single.items():
            self.by_bytes.setdefault(bytes([byte]), index)
        self._longest = max(map(len, self.by_bytes), default=0)
        self._cutter = _plain_cutter(pipeline)

    def cut(self, texts: Sequence[bytes]) -> list[tuple[int, ...]]:
        """The tokens that this tokenizer cuts each text into, as if it stood in the middle of a line.

        Bytes that are not characters are covered by the longest tokens that fit. What the tokenizer has no token for is
        left out.
        """
        parts = [_STRAY.split(text.decode("utf-8", "surrogateescape")) for text in texts]
        plain = [part for split in parts for part in split[::2]]
        encoded = iter(self._cutter.encode_batch(plain, add_special_tokens=False))
        found = []
        for split in parts:
            ids: list[int] = []
            for number, part in enumerate(split):
                if number % 2:
                    ids.extend(self._cover(part.encode("utf-8", "surrogateescape")))
                else:
                    ids.extend(index for index in next(encoded).ids if index not in self.special)
            found.append(tuple(ids))
        return found

    def _cover(self, stray: bytes) -> Iterator[int]:
        start = 0
        while start < len(stray):
            for end in range(min(len(stray), start + self._longest), start, -1):
                index = self.by_bytes.get(stray[start:end])
                if index is not None:
                    yield index
                    break
            else:
                end = start + 1
            start = end


def text_bytes(tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
    """Bytes of text that each token stands for, int64 [V], 0 for special tokens; None where tokens are not bytes.

    A space that a tokenizer puts before a text counts like any other.
    """
    try:
        table = TokenBytes(tokenizer)
    except ManticoreError:
        return None
    sizes = torch.zeros(table.size, dtype=torch.long)
    for index, text in table.ordinary.items():
        sizes[index] = len(text)
    for index in table.single:
        sizes[index] = 1
    return sizes


def _from_printable(token: str) -> bytes:
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()


def _parts(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A step of a tokenizer's pipeline, and the steps inside it."""
    if part is not None:
        yield part
        for inside in ("normalizers", "pretokenizers", "decoders"):
            for each in part.get(inside) or []:
                yield from _parts(each)


def _is_byte_level(pipeline: dict[str, Any], name: str) -> bool:
    """True for byte-level, False for ``▁``."""
    steps = [step for part in ("normalizer", "pre_tokenizer", "decoder") for step in _parts(pipeline.get(part))]
    types = {step["type"] for step in steps}
    if "ByteLevel" in types:
        return True
    replaced = [step for step in steps if step["type"] == "Replace" and _PREFIX in json.dumps(step, ensure_ascii=False)]
    if "Metaspace" in types or replaced:
        return False
    raise ManticoreError(
        f"combine: the tokenizer of {name} is neither byte-level nor writes {_PREFIX} for a space, so its tokens "
        "cannot be compared with others. Fix: choose checkpoints with one tokenizer"
    )


def _unknown(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    """The id of what the model has no token for."""
    index = model.get("unk_id")
    return index if index is not None else vocabulary.get(model.get("unk_token") or "")


def _plain_cutter(pipeline: dict[str, Any]) -> Tokenizer:
    """The same tokenizer without what it does to the beginning and the end of a text, and without special tokens."""
    pipeline = {**pipeline, "post_processor": None, "truncation": None, "padding": None}
    pipeline["added_tokens"] = [token for token in pipeline["added_tokens"] if not token["special"]]
    for part in ("normalizer", "pre_tokenizer"):
        pipeline[part] = _without_edges(pipeline.get(part))
    return Tokenizer.from_str(json.dumps(pipeline))


def _without_edges(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None or part["type"] in ("Prepend", "Strip"):
        return None
    part = dict(part)
    if part["type"] == "Metaspace":
        part["prepend_scheme"] = "never"
    if "add_prefix_space" in part:
        part["add_prefix_space"] = False
    for inside in ("normalizers", "pretokenizers"):
        if inside in part:
            part[inside] = [kept for each in part[inside] if (kept := _without_edges(each)) is not None]
    return part
