"""Where the segments of a component start and end: evenly, or at layers that are given. No torch.

Shapes: K components, N blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manticore.errors import ManticoreError


def cut(num_layers: int, num_blocks: int) -> list[int]:
    """Where the segments of a component start and end: N + 1 layer indices, as even as the depth allows.

    Raises:
        ManticoreError: more blocks than layers.
    """
    if num_blocks > num_layers:
        raise ManticoreError(
            f"combine: {num_blocks} blocks, but a component has only {num_layers} layers. "
            f"Fix: num_blocks <= {num_layers}"
        )
    return [(2 * num_layers * n + num_blocks) // (2 * num_blocks) for n in range(num_blocks + 1)]


def wrong_rows(boundaries: Sequence[Sequence[int]], num_components: int, num_blocks: int) -> Iterator[tuple[str, str]]:
    """What is wrong with boundaries whatever the components' depths are, and what to do.

    Args:
        boundaries: per component where its segments start, and its number of layers.
        num_components: K.
        num_blocks: N.
    """
    if len(boundaries) != num_components:
        what = f"boundaries of {len(boundaries)} components (expected {num_components})"
        yield what, "one list of layer indices for each component"
    for k, row in enumerate(boundaries):
        if len(row) != num_blocks + 1:
            what = f"boundaries of component {k} are {len(row)} layer indices (expected {num_blocks + 1}, the last its "
            yield f"{what}number of layers)", f"lists as long as each other, or num_blocks={len(row) - 1}"


def wrong_end(row: Sequence[int], name: str, num_layers: int) -> tuple[str, str] | None:
    """What is wrong with the boundaries of a component that has so many layers, and what to do."""
    if row[-1] == num_layers:
        return None
    return f"boundaries {list(row)}, but {name} has {num_layers} layers", f"end them with {num_layers}"
