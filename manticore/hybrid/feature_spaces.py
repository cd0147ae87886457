"""Which components share one feature space, so that nothing translates between them.

A component that was made beside a parent (fresh layers, a twin) begins in the parent's features and hands its own on as
the parent would. Between the two there is no projector, whatever kind the others are.

Shapes: K components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

MARK = "beside_parent"
"""In a component's configuration: it was made beside a parent, and is in its space while its embeddings are the
parent's."""


def mark(config: PreTrainedConfig) -> None:
    """Note in a component's configuration that it was made beside a parent."""
    setattr(config, MARK, True)


def is_marked(config: Any) -> bool:
    """Whether a component was made beside a parent."""
    return getattr(config, MARK, False) is True


def spaces_of(configs: Sequence[Any], one_table: Callable[[int, int], bool]) -> list[int] | None:
    """Per component the first one that shares its feature space; None where all are apart.

    Args:
        configs: of the components.
        one_table: whether two components, of one width and number of rows, have the same embeddings.
    """
    spaces: list[int] = []
    for k, config in enumerate(configs):
        made = is_marked(config)
        spaces.append(
            next(
                (
                    spaces[j]
                    for j in range(k)
                    if (made or is_marked(configs[j]))
                    and (config.hidden_size, config.vocab_size) == (configs[j].hidden_size, configs[j].vocab_size)
                    and one_table(j, k)
                ),
                k,
            )
        )
    return None if spaces == list(range(len(spaces))) else spaces


def of_components(components: Sequence[PreTrainedModel]) -> list[int] | None:
    """:func:`spaces_of` loaded components."""

    def table(k: int) -> Tensor:
        embeddings: Any = components[k].get_input_embeddings()
        weight: Tensor = embeddings.weight.detach()
        return weight

    def one_table(a: int, b: int) -> bool:
        ours, theirs = table(a), table(b)
        return ours is theirs or torch.equal(ours, theirs.to(ours))

    return spaces_of([component.config for component in components], one_table)


def of_configs(configs: Sequence[PreTrainedConfig]) -> list[int] | None:
    """:func:`spaces_of` components whose weights nobody has read: tables of one shape are taken to be the same."""
    return spaces_of(configs, lambda a, b: True)


def wrong_spaces(spaces: Sequence[int], configs: Sequence[Any]) -> str | None:
    """What is impossible about feature spaces, None if nothing."""
    count = len(configs)
    if not _names_firsts(spaces, count):
        return f"feature_spaces is {list(spaces)} (expected for each of {count} components the first one of its space)"
    for k, first in enumerate(spaces):
        ours, theirs = configs[k].hidden_size, configs[first].hidden_size
        if ours != theirs:
            return f"components {first} and {k} share a feature space, with widths {theirs} and {ours}"
    return None


def _names_firsts(groups: Sequence[int], count: int) -> bool:
    """Whether each of so many components is called by the first one of its group."""
    return len(groups) == count and all(first <= k and groups[first] == first for k, first in enumerate(groups))


def wrong_sharing(owners: Sequence[int], spaces: Sequence[int]) -> str | None:
    """What is impossible about who shares weights with whom, None if nothing."""
    count = len(spaces)
    if not _names_firsts(owners, count):
        return f"shared_weights is {list(owners)} (expected for each of {count} components the first it shares with)"
    apart = next((k for k, first in enumerate(owners) if spaces[k] != spaces[first]), None)
    if apart is not None:
        return f"components {owners[apart]} and {apart} share weights, and no feature space"
    return None
