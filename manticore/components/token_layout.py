"""Rows as layers with a state can read them: padding in front of the tokens, one document per row.

A recurrent layer passes its state on over padding, a convolution or a window counts it, and nothing of them ends where
``position_ids`` start anew. Left padding alone is harmless in all families, and so is padding behind the last token
where nothing is read afterwards. Whatever else is given is rearranged into that, run, and put back: the logits are
those of the documents alone.

Shapes: B batch, T tokens, n rows of a piece, L their length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.nn.utils.rnn import pad_sequence

from manticore.components.state_cache import CountingCache
from manticore.errors import ManticoreError

_APART = "Fix: pad on the left (tokenizer.padding_side = 'left') and read the whole prompt in one pass"


@dataclass(frozen=True)
class Piece:
    """Some of the tokens of a batch as rows of one length."""

    rows: Tensor
    """``[n, L]``: where in the batch a token stands."""
    columns: Tensor
    """``[n, L]``: where in its row."""
    real: Tensor
    """``[n, L]``, False on padding."""

    @property
    def mask(self) -> Tensor:
        """``[n, L]`` of 0 and 1."""
        return self.real.long()

    def take(self, values: Tensor) -> Tensor:
        """``[B, T, …]`` → ``[n, L, …]``."""
        return values[self.rows, self.columns]

    def positions(self, position_ids: Tensor | None, batch: int) -> Tensor:
        """``[n, L]`` of the given ``[B or 1, T]``, counted from each row's first token where there are none."""
        if position_ids is None:
            return (self.mask.cumsum(1) - 1).clamp_min(0)
        return self.take(position_ids.expand(batch, -1))


def put_back(pieces: Sequence[Piece], values: Sequence[Tensor], batch: int, tokens: int) -> Tensor:
    """``[n, L, …]`` of every piece → ``[B, T, …]``; zeros on padding."""
    whole = values[0].new_zeros(batch, tokens, *values[0].shape[2:])
    for piece, value in zip(pieces, values):
        whole[piece.rows[piece.real], piece.columns[piece.real]] = value[piece.real].to(whole.dtype)
    return whole


def rearranged(
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    batch: int,
    tokens: int,
    cache: CountingCache | None,
    *,
    stateful: Callable[[], str | None],
    one_by_one: bool = False,
) -> list[Piece] | None:
    """The pieces to run in place of the batch, or None where it can be run as it is.

    Looking at tensors waits for the device, as attention masks do anyway; it is left out for the tokens that
    ``generate`` writes.

    Args:
        attention_mask: ``[B, cached + T]``, 0 on padding, or None.
        position_ids: ``[B or 1, T]`` or None.
        batch: B.
        tokens: T.
        cache: of the tokens before these; how it holds rearranged tokens is noted there.
        stateful: names what has a state or a window, which padding between cached tokens would reach; or None.
        one_by_one: whether several tokens after cached ones are read one after the other.

    Raises:
        ManticoreError: documents in one row with a cache, or padding behind tokens that are cached already.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        return None
    seen = 0 if cache is None else cache.seen_tokens
    looked_at = attention_mask is not None and not (cache is not None and attention_mask.shape[1] <= cache.real_columns)
    real = attention_mask.bool() if looked_at and attention_mask is not None else None
    new = None if real is None else real[:, seen:]
    anew = None
    if position_ids is not None and tokens > 1:
        positions = position_ids.expand(batch, -1)
        # without a mask documents begin wherever transformers' attention lets them begin
        anew = _begin_anew(positions, new).any()
    if new is None and anew is None:
        return None
    if cache is None:
        several, holes = decided(anew, None if new is None else _holes(new))
        if several:
            return _documents(positions, new)
        return [_aligned(new)] if holes and new is not None else None
    start = max(seen - 1, 0)
    ends = None if real is None else (real[:, start:-1] & ~real[:, start + 1 :]).any()
    name = None if new is None else stateful()
    single = name is not None and (tokens == 1 or one_by_one)
    several, behind, alone = decided(anew, ends, (~new).any() if single and new is not None else None)
    if several:
        raise ManticoreError(
            "forward: position_ids start anew inside a row, and a cache holds one document per row. "
            "Fix: a row per document, or no cache"
        )
    if behind and not seen and new is not None:
        piece = _aligned(new)
        cache.layout = piece.real
        return [piece]
    if behind and name is not None:
        raise ManticoreError(
            f"forward: attention_mask has padding behind tokens that are cached already, which {name} cannot leave "
            f"out. {_APART}"
        )
    if alone:
        raise ManticoreError(
            f"forward: attention_mask has padding among tokens that are read one at a time, which {name} cannot "
            f"leave out. {_APART}"
        )
    return None


def holds_documents(attention_mask: Tensor | None, position_ids: Tensor | None, batch: int, tokens: int) -> bool:
    """Whether positions ``[B or 1, T]`` start anew inside a row; ``attention_mask`` ``[B, T]`` is 0 on padding."""
    if position_ids is None or tokens < 2 or (attention_mask is not None and attention_mask.dim() != 2):
        return False
    real = None if attention_mask is None else attention_mask.bool()
    return decided(_begin_anew(position_ids.expand(batch, -1), real).any())[0]


def continued_mask(
    attention_mask: Tensor | None, cache: CountingCache | None, batch: int, tokens: int
) -> Tensor | None:
    """``[B, cached + T]`` as the cache holds its tokens: rearranged prompts have their padding in front there."""
    if cache is None or cache.layout is None:
        return attention_mask
    layout = cache.layout.long()
    if attention_mask is None:
        attention_mask = layout.new_ones(batch, cache.seen_tokens + tokens)
    return torch.cat([layout.to(attention_mask.dtype), attention_mask[:, layout.shape[1] :]], 1)


def continued_positions(
    position_ids: Tensor | None, attention_mask: Tensor | None, cache: CountingCache | None, tokens: int
) -> Tensor | None:
    """``[B, T]``: behind a rearranged prompt positions are counted without its padding, as they were in it."""
    if position_ids is not None or cache is None or cache.layout is None or attention_mask is None:
        return position_ids
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -tokens:]


def _begin_anew(positions: Tensor, real: Tensor | None) -> Tensor:
    """``[B, T]``: whether a token begins another document than the one before it in its row."""
    if real is None:
        return torch.cat([torch.zeros_like(positions[:, :1], dtype=torch.bool), positions.diff(dim=1) != 1], 1)
    places = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    latest = torch.where(real, places, -1).cummax(1).values
    before = torch.cat([torch.full_like(latest[:, :1], -1), latest[:, :-1]], 1)
    return real & (before >= 0) & (positions <= positions.gather(1, before.clamp_min(0)))


def _holes(real: Tensor) -> Tensor:
    """Whether padding stands between tokens of a row."""
    return (real[:, 1:] & ~real[:, :-1] & (real.cumsum(1) > 0)[:, :-1]).any()


def decided(*flags: Tensor | None) -> list[bool]:
    """The flags as Python's, read at once; a compiled graph cannot branch on them, so it ends where one is set."""
    given = [flag for flag in flags if flag is not None]
    if torch.compiler.is_compiling():
        for flag in given:
            torch._assert_async(~flag, "forward: compiled, it reads left-padded rows of one document only")
        return [False] * len(flags)
    if any(flag.is_meta or is_fake(flag) for flag in given):
        # without data, as for a plan
        return [False] * len(flags)
    read = iter(torch.stack(given).tolist())
    return [False if flag is None else next(read) for flag in flags]


def _aligned(real: Tensor) -> Piece:
    """All rows, their padding moved to the front."""
    columns = real.long().sort(stable=True, dim=1).indices
    rows = torch.arange(len(real), device=real.device)[:, None].expand_as(columns)
    return Piece(rows, columns, real.gather(1, columns))


def _documents(positions: Tensor, real: Tensor | None) -> list[Piece]:
    """A row per document; those of one piece differ in length by less than a factor of two."""
    tokens = positions.shape[1]
    kept = torch.ones_like(positions, dtype=torch.bool) if real is None else real
    starts = _begin_anew(positions, real) | (kept & (kept.cumsum(1) == 1))
    where = kept.flatten().nonzero().flatten()
    lengths = starts.flatten()[where].cumsum(0).unique_consecutive(return_counts=True)[1].tolist()
    groups: dict[int, list[Tensor]] = {}
    for document in where.split(lengths):
        groups.setdefault((len(document) - 1).bit_length(), []).append(document)
    pieces = []
    for documents in groups.values():
        places = pad_sequence(documents, batch_first=True)
        sizes = torch.tensor([len(document) for document in documents], device=places.device)
        inside = torch.arange(places.shape[1], device=places.device) < sizes[:, None]
        pieces.append(Piece(places // tokens, places % tokens, inside))
    return pieces
