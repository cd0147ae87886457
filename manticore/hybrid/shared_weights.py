"""Weights that a parent and its twins have in common: one tensor each, in memory, on disk and for the optimizer.

A twin is its parent's model with other token mixers; everything else of it begins as the parent's, bit for bit. Beside
each other in a hybrid the two hold such weights once. Whose a weight is, its name says: a twin calls ``parent.NAME``
what its parent calls ``NAME``. Mixers are left out, whose maps begin as the parent's and go their own way.

In a discretized hybrid no layer stands twice. What is left to share is the table of a model that reads its embeddings
and predicts with them, where its path begins in the one and ends in the other.

Shapes: K components.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from manticore.components.pruning import Dropped
from manticore.twins.configuration import TwinConfig
from manticore.twins.mixers import TwinMixer
from manticore.twins.modeling import TwinForCausalLM


def parents_names(component: nn.Module) -> dict[str, str]:
    """What its parent calls a weight → what the component calls it; of a model that is no twin both are the same.

    The maps of exchanged mixers are left out.
    """
    twin = isinstance(component, TwinForCausalLM)
    # in a plan one layer stands under several names
    modules = component.named_modules(remove_duplicate=False)
    own = [f"{name}." for name, module in modules if isinstance(module, TwinMixer)]
    names = [name for name, _ in component.named_parameters(remove_duplicate=False)]
    kept = [name for name in names if not name.startswith(tuple(own))] if own else names
    return {name.removeprefix("parent.") if twin else name: name for name in kept}


def of_components(components: Sequence[PreTrainedModel], spaces: Sequence[int] | None) -> list[int] | None:
    """Per component the first one that it has weights in common with; None where nobody has.

    Args:
        components: loaded, in the precision that they stay in.
        spaces: per component its feature space, called by the first component in it.
    """
    return _owners(spaces, lambda j, k: _one_model(components, j, k))


def of_configs(configs: Sequence[Any], spaces: Sequence[int] | None) -> list[int] | None:
    """:func:`of_components` whose weights nobody has read: a twin is taken to be that of the parent beside it."""
    return _owners(spaces, lambda j, k: _one_family(configs[j], configs[k]))


def _owners(spaces: Sequence[int] | None, alike: Callable[[int, int], bool]) -> list[int] | None:
    owners: list[int] = []
    for k, space in enumerate(spaces := spaces or ()):
        owners.append(next((j for j in range(k) if owners[j] == j and spaces[j] == space and alike(j, k)), k))
    return None if owners == list(range(len(owners))) else owners


def _one_family(ours: Any, theirs: Any) -> bool:
    twins = [isinstance(config, TwinConfig) for config in (ours, theirs)]
    bodies = [config.parent if twin else config for twin, config in zip(twins, (ours, theirs))]
    return any(twins) and bodies[0].model_type == bodies[1].model_type


def _one_model(components: Sequence[PreTrainedModel], j: int, k: int) -> bool:
    """Whether one of two is the other's twin, or both are twins of one parent, and no weight has changed since."""
    if not _one_family(components[j].config, components[k].config):
        return False
    ours, theirs = parents_names(components[j]), parents_names(components[k])
    return all(
        _equal(components[j].get_parameter(ours[name]), components[k].get_parameter(theirs[name]))
        for name in ours.keys() & theirs.keys()
    )


def _equal(one: nn.Parameter, other: nn.Parameter) -> bool:
    same = one.shape == other.shape and one.dtype == other.dtype
    return one is other or (same and torch.equal(one, other.to(one.device)))


def ties(
    components: Mapping[int, nn.Module], owners: Sequence[int] | None, ends: tuple[int, int] | None
) -> dict[str, str]:
    """Full name of a weight → that of the one it is, as transformers has ties.

    Args:
        components: those that a hybrid holds, by index.
        owners: per component the first that it shares with.
        ends: of a path whose last component predicts with the table of the first: these two.
    """
    found: dict[str, str] = {}
    held: dict[tuple[int, str], str] = {}
    for k, owner in enumerate(owners or ()):
        for name, own in parents_names(components[k]).items() if k in components else ():
            full = f"component_{k}.{own}"
            kept = held.setdefault((owner, name), full)
            if kept != full:
                found[full] = kept
    if ends is not None:
        table, head = (_named(components[k], k, head=head) for k, head in zip(ends, (False, True)))
        if table is not None and head is not None:
            found[head] = table
    return found


def shares_table(first: PreTrainedModel, last: PreTrainedModel) -> bool:
    """Whether one component predicts with another's embeddings, as they are in a supernet."""
    table: Any = first.get_input_embeddings()
    head: Any = last.get_output_embeddings()
    parts = table, head
    return not any(part is None or isinstance(part, Dropped) for part in parts) and head.weight is table.weight


def _named(component: Any, k: int, *, head: bool) -> str | None:
    """Full name of the weight of a component's embeddings or head, None where they were dropped."""
    wanted = component.get_output_embeddings() if head else component.get_input_embeddings()
    if isinstance(wanted, Dropped):
        return None
    name = next((name for name, module in component.named_modules() if module is wanted), None)
    return None if name is None else f"component_{k}.{name}.weight"
