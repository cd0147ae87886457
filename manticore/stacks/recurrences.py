"""Linear-time recurrences in chunks: matrix products inside a chunk, a carried state between chunks.

    scalar decay    S_t = a_t S_{t-1} + k_t v_t^T            o_t = S_t^T q_t       a_t one number per head
    channel decay   S_t = diag(w_t) S_{t-1} + k_t v_t^T      o_t = S_t^T q_t       w_t one number per key channel
                    with a bonus u (RWKV):                   o_t = (S_{t-1} + diag(u) k_t v_t^T)^T q_t
    delta rule      S_t = a_t S_{t-1} + k_t u_t^T            o_t = S_t^T q_t
                    u_t = b_t (v_t - a_t S_{t-1}^T k_t)
    with channel decay
    and low rank    S_t = diag(w_t) S_{t-1} + k_t v_t^T + b_t u_t^T   o_t = S_t^T q_t   u_t = S_{t-1}^T a_t

With logarithms of the decays summed inside a chunk every factor is exp(difference) <= 1, so nothing overflows however
fast a state decays. In the delta rule the u_t of a chunk solve a triangular system (the WY form of Yang et al.,
"Parallelizing Linear Transformers with the Delta Rule", 2024).

Scalar decays and the delta rule take several queries per state, as grouped attention has them: R query heads read the
state of one head of keys and values. They lie behind one another in a chunk, as R * C rows.

Shapes: B batch, H heads, T tokens, N chunks, C tokens of a chunk, K key width, V value width, R queries per state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SCALAR_CHUNK = 64
CHANNEL_CHUNK = 16
DELTA_CHUNK = 32


def scalar_decay(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Linear attention with at most one decay per head and step.

    Args:
        q: ``[B, R * H, T, K]``, the R that read one state behind one another.
        k: ``[B, H, T, K]``.
        v: ``[B, H, T, V]``.
        log_decay: ``[B, H, T]``, log a_t <= 0; None is no decay.
        state: ``[B, H, K, V]`` before the first step; None is zeros.

    Returns:
        o ``[B, R * H, T, V]`` and the state after the last step.
    """
    tokens, queries = q.shape[2], q.shape[1] // k.shape[1]
    size = min(SCALAR_CHUNK, tokens)
    q, k, v = (_rows_of_chunks(q, queries, size), _chunks(k, size), _chunks(v, size))
    scores = q @ k.mT
    if log_decay is None:
        before, state = _carry(k.mT @ v, None, state)
        out = _each_query(scores, queries, torch.tril) @ v + q @ before
    else:
        total = _chunks(log_decay, size).cumsum(-1)
        to_end = (total[..., -1:] - total).exp()
        before, state = _carry((k * to_end[..., None]).mT @ v, total[..., -1, None, None].exp(), state)
        decays, reached = _decays(total)[..., None, :, :], total[..., None, :, None].exp()
        scores = _each_query(scores, queries, lambda each: each * decays)
        out = scores @ v + _each_query(q, queries, lambda each: each * reached) @ before
    return _out_of_rows(out, queries, tokens), state


def scalar_decay_flops(tokens: int, heads: int, key_width: int, value_width: int) -> int:
    """FLOPs of the products of :func:`scalar_decay`, with a state for each query."""
    size, chunks = _sizes(tokens, SCALAR_CHUNK)
    inside = size * size * (key_width + value_width)
    return 2 * heads * chunks * (inside + 2 * size * key_width * value_width)


def channel_decay(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Linear attention with one decay per key channel and step.

    Args:
        q: ``[B, H, T, K]``.
        k: ``[B, H, T, K]``.
        v: ``[B, H, T, V]``.
        log_decay: ``[B, H, T, K]``, log w_t <= 0.
        state: ``[B, H, K, V]`` before the first step; None is zeros.
        bonus: ``[H, K]``, u: the current token is read with it, and not from the state.

    Returns:
        o ``[B, H, T, V]`` and the state after the last step.
    """
    tokens = q.shape[2]
    size = min(CHANNEL_CHUNK, tokens)
    own = None if bonus is None else (q * bonus[:, None] * k).sum(-1, keepdim=True) * v
    q, k, v, log_decay = (_chunks(x, size) for x in (q, k, v, log_decay))
    total = log_decay.cumsum(-2)
    # what has decayed of a key when a query reads it: with a bonus the query reads before the step's own decay
    reach = total if bonus is None else total - log_decay
    exponents = reach[..., :, None, :] - total[..., None, :, :]
    visible = exponents.new_ones(size, size, dtype=torch.bool).tril(0 if bonus is None else -1)
    decayed_keys = exponents.masked_fill(~visible[..., None], float("-inf")).exp() * k[..., None, :, :]
    scores = (decayed_keys @ q[..., None])[..., 0]
    to_end = (total[..., -1:, :] - total).exp()
    before, state = _carry((k * to_end).mT @ v, total[..., -1, :, None].exp(), state)
    out = (scores @ v + (q * reach.exp()) @ before).flatten(2, 3)[:, :, :tokens]
    return (out if own is None else out + own), state


def channel_decay_flops(tokens: int, heads: int, key_width: int, value_width: int) -> int:
    """FLOPs of the products of :func:`channel_decay`."""
    size, chunks = _sizes(tokens, CHANNEL_CHUNK)
    inside = size * size * (key_width + value_width)
    return 2 * heads * chunks * (inside + 2 * size * key_width * value_width)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The (gated) delta rule: what a key held is replaced by the step's value, as far as ``beta`` says.

    Args:
        q: ``[B, R * H, T, K]``, the R that read one state behind one another.
        k: ``[B, H, T, K]``, of length 1.
        v: ``[B, H, T, V]``.
        beta: ``[B, H, T]``, 0 … 1.
        log_decay: ``[B, H, T]``, log a_t <= 0; None is no decay.
        state: ``[B, H, K, V]`` before the first step; None is zeros.

    Returns:
        o ``[B, R * H, T, V]`` and the state after the last step.
    """
    tokens, value_width, queries = q.shape[2], v.shape[-1], q.shape[1] // k.shape[1]
    size = min(DELTA_CHUNK, tokens)
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
    q = _rows_of_chunks(q, queries, size)
    k, v, beta, log_decay = (_chunks(x, size) for x in (k, v, beta, log_decay))
    total = log_decay.cumsum(-1)
    from_start = total[..., None].exp()
    decays = _decays(total)
    overlap = (k @ k.mT) * decays * beta[..., None]
    # the right-hand sides without a state, and what a state takes away from them
    right = torch.cat([v, k * from_start], -1) * beta[..., None]
    solved = torch.linalg.solve_triangular(overlap.tril(-1), right, upper=False, unitriangular=True)
    fresh, taken = solved[..., :value_width], solved[..., value_width:]
    scores = _each_query(q @ k.mT, queries, lambda each: each * decays[..., None, :, :])
    reading = _each_query(q, queries, lambda each: each * from_start[..., None, :, :])
    keys = (k * (total[..., -1:] - total).exp()[..., None]).mT
    kept = total[..., -1, None, None].exp()
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], value_width)
    outputs = []
    chunks = (x.unbind(2) for x in (fresh, taken, reading, scores, kept, keys))
    for fresh_n, taken_n, reading_n, scores_n, kept_n, keys_n in zip(*chunks):
        update = fresh_n - taken_n @ state
        outputs.append(reading_n @ state + scores_n @ update)
        state = kept_n * state + keys_n @ update
    return _out_of_rows(torch.stack(outputs, 2), queries, tokens), state


def delta_rule_flops(tokens: int, heads: int, key_width: int, value_width: int) -> int:
    """FLOPs of the products and the triangular solve of :func:`delta_rule`, with a state for each query."""
    size, chunks = _sizes(tokens, DELTA_CHUNK)
    products = size * size * (2 * key_width + value_width) + 3 * size * key_width * value_width
    solve = size * size * (key_width + value_width)
    return heads * chunks * (2 * products + solve)


def channel_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    log_decay: Tensor,
    b: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention with one decay per key channel, which rewrites a part of its state at every step.

    It reads along ``a`` what the state held, and writes that along ``b``: the diagonal plus a matrix of rank one of
    RWKV-7 (Peng et al., 2025). Where b is k, the step writes k (v + u)^T, which Kimi delta attention does with
    a = -diag(w) k and k times its beta (Kimi Team, 2025).

    Args:
        q: ``[B, H, T, K]``.
        k: ``[B, H, T, K]``.
        v: ``[B, H, T, V]``.
        a: ``[B, H, T, K]``.
        log_decay: ``[B, H, T, K]``, log w_t <= 0.
        b: ``[B, H, T, K]``; None is k.
        state: ``[B, H, K, V]`` before the first step; None is zeros.

    Returns:
        o ``[B, H, T, V]`` and the state after the last step.
    """
    tokens, value_width = q.shape[2], v.shape[-1]
    size = min(CHANNEL_CHUNK, tokens)
    q, k, v, a, log_decay = (_chunks(x, size) for x in (q, k, v, a, log_decay))
    b = None if b is None else _chunks(b, size)
    total = log_decay.cumsum(-2)
    # a reads before the step's own decay; q reads after it, which is q w before it and the step's own part beside it
    reach = total - log_decay
    exponents = reach[..., :, None, :] - total[..., None, :, :]
    earlier = exponents.new_ones(size, size, dtype=torch.bool).tril(-1)
    decays = exponents.masked_fill(~earlier[..., None], float("-inf")).exp()
    readers = torch.stack([a, q * log_decay.exp()], -1)

    def scores(writer: Tensor) -> tuple[Tensor, Tensor]:
        """What a and q see of what is written along ``writer``: ``[B, H, N, C, C]`` each."""
        seen, read = ((decays * writer[..., None, :, :]) @ readers).unbind(-1)
        return seen, read + torch.diag_embed((q * writer).sum(-1))

    seen, read = scores(k)
    from_start, to_end = reach.exp(), (total[..., -1:, :] - total).exp()
    right, writer = v, k
    out = added = None
    if b is not None:
        # v is known beforehand; what remains to solve for is u, which is written along b
        right, out, added = seen @ v, read @ v, (k * to_end).mT @ v
        seen, read = scores(b)
        writer = b
    solved = torch.linalg.solve_triangular(
        -seen, torch.cat([right, a * from_start], -1), upper=False, unitriangular=True
    )
    fresh, taken = solved.split([value_width, solved.shape[-1] - value_width], -1)
    before, updates, state = _rewritten(fresh, taken, (writer * to_end).mT, total[..., -1, :, None].exp(), added, state)
    result = read @ updates + (q * total.exp()) @ before
    return (result if out is None else result + out).flatten(2, 3)[:, :, :tokens], state


def channel_delta_rule_flops(
    tokens: int, heads: int, key_width: int, value_width: int, *, two_writers: bool = False
) -> int:
    """FLOPs of the products and the triangular solve of :func:`channel_delta_rule`, with a ``b`` or without one."""
    size, chunks = _sizes(tokens, CHANNEL_CHUNK)
    inside = size * size * (2 * key_width + value_width)
    products = inside + 3 * size * key_width * value_width
    if two_writers:
        products += inside + size * size * value_width + size * key_width * value_width
    solve = size * size * (key_width + value_width)
    return heads * chunks * (2 * products + solve)


def _rewritten(
    fresh: Tensor, taken: Tensor, keys: Tensor, kept: Tensor, added: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """States before every chunk ``[B, H, N, K, V]``, what each writes ``[B, H, N, C, V]``, the state after the last."""
    batch, heads = fresh.shape[:2]
    first = fresh.new_zeros(batch, heads, keys.shape[-2], fresh.shape[-1]) if state is None else state
    current = first.flatten(0, 1)
    # products of three dimensions and a sum are one operation each, and there are two in every turn of the loop
    turns = [x.flatten(0, 1).unbind(1) for x in (fresh, taken, keys, kept)]
    also = [None] * fresh.shape[2] if added is None else added.flatten(0, 1).unbind(1)
    before, updates = [], []
    for fresh_n, taken_n, keys_n, kept_n, added_n in zip(*turns, also):
        update = torch.baddbmm(fresh_n, taken_n, current)
        before.append(current)
        updates.append(update)
        left = kept_n * current if added_n is None else torch.addcmul(added_n, kept_n, current)
        current = torch.baddbmm(left, keys_n, update)
    stacked = (torch.stack(x, 1).unflatten(0, (batch, heads)) for x in (before, updates))
    return *stacked, current.unflatten(0, (batch, heads))


def _sizes(tokens: int, chunk: int) -> tuple[int, int]:
    """Tokens of a chunk and how many chunks there are."""
    size = min(chunk, tokens)
    return size, -(-tokens // size)


def _rows_of_chunks(q: Tensor, queries: int, size: int) -> Tensor:
    """``[B, R * H, T, K]`` → ``[B, H, N, R * C, K]``: in a chunk the queries of one head after the other."""
    return _chunks(q, size).unflatten(1, (-1, queries)).transpose(2, 3).flatten(3, 4)


def _each_query(x: Tensor, queries: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change`` of ``[…, R, C, ·]``, for what lies as ``[…, R * C, ·]``."""
    return change(x.unflatten(-2, (queries, -1))).flatten(-3, -2)


def _out_of_rows(out: Tensor, queries: int, tokens: int) -> Tensor:
    """``[B, H, N, R * C, V]`` → ``[B, R * H, T, V]``, without what filled the last chunk up."""
    return out.unflatten(3, (queries, -1)).transpose(2, 3).flatten(1, 2).flatten(2, 3)[:, :, :tokens]


def _chunks(x: Tensor, size: int) -> Tensor:
    """``[B, H, T, …]`` → ``[B, H, N, C, …]``, filled up with zeros: they change no state."""
    missing = -x.shape[2] % size
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, missing))
    return x.unflatten(2, (-1, size))


def _decays(total: Tensor) -> Tensor:
    """``[…, C]`` summed logarithms → ``[…, C, C]``: what is left at the row's step of the column's, 0 above."""
    exponents = total[..., :, None] - total[..., None, :]
    later = exponents.new_ones(exponents.shape[-2:], dtype=torch.bool).triu(1)
    return exponents.masked_fill(later, float("-inf")).exp()


def _carry(updates: Tensor, kept: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """States before every chunk ``[B, H, N, K, V]`` and after the last, given what each adds and what it keeps."""
    if state is None:
        state = torch.zeros_like(updates[:, :, 0])
    before = []
    shares = [None] * updates.shape[2] if kept is None else kept.unbind(2)
    for update, share in zip(updates.unbind(2), shares):
        before.append(state)
        state = update + (state if share is None else share * state)
    return torch.stack(before, 2), state
