"""Random streams that depend on what they are for, not on when they are drawn.

seed(root, purpose, index) = first 32 bits of sha256("root/purpose/index"). Two purposes never share a stream,
so a run that is resumed, or whose parts run in another order, draws the same numbers.
"""

import hashlib

from manticore.errors import ManticoreError


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """The seed (0 <= value < 2**32) of stream number `index` (trial, worker, epoch) of those for `purpose`."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ManticoreError(f"seed: expected an integer, got {seed!r}. Fix: pass seed=0 or another integer")
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
